"""How many clips a second a step of each method takes, and the bare networks: as many forwards and backwards, on views
made the same way, of the sum of outputs instead of a loss, and the same update. In turns, so that each ratio is of
neighbours in time. Queues and K are those of a large set; networks are the method's, with predictors and other heads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any, get_args

import torch
from measure import arguments, pairs_of, record, seconds_of
from step import begun
from torch import Tensor

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import Config, MethodName, preset, with_values
from unfused_fast.config.checks import READ_BY
from unfused_fast.data import Batch
from unfused_fast.memory import freed_memory_kept
from unfused_fast.methods import Method
from unfused_fast.methods.moco import MOST_KEYS
from unfused_fast.methods.swav import MOST_ROWS
from unfused_fast.models import KeyQueue
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import Trainer, autocast, full_precision, prepare_for, quietly
from unfused_fast.training.optim import build_optimizer

METHODS: tuple[MethodName, ...] = get_args(MethodName)


def in_second_epoch(
    config: Config, shards: ShardSet, out: Path, device: torch.device
) -> tuple[Method, Trainer, list[Batch]]:
    """`train pretrain` in epoch 2, from which on all parts of each method work, and its batches."""
    method, trainer = begun(config, shards, out, device)
    for queue in [module for module in method.modules() if isinstance(module, KeyQueue)]:
        queue.keys = KeyQueue(MOST_ROWS if config.method.name == "swav" else MOST_KEYS, queue.keys.shape[1]).keys
    method.to(device)
    for batch in trainer.batches(1):
        trainer.train_batch(batch)
    trainer.begin_epoch(2)
    return method, trainer, list(trainer.batches(2))


def forwards_of(method: Method, step: Callable[[], None]) -> list[tuple[torch.Size, bool]]:
    """Of each pass through an encoder in one step: the shape of the view, and whether it gets a gradient."""
    run, seen = method.run, list[tuple[torch.Size, bool]]()

    def noted(*inputs: Tensor, **given: Any) -> Any:
        if hasattr(given.get("network", method.network), "encoder"):
            seen.append((inputs[0].shape, torch.is_grad_enabled()))
        return run(*inputs, **given)

    method.run = noted
    step()
    method.run = run
    return seen


def step_and_bare(
    config: Config, shards: ShardSet, device: torch.device, repeats: int, steps: int
) -> tuple[list[float], list[float], str]:
    """Clips a second of a step and of the bare network, and what passes through the encoder in both."""
    size = int(config.train.batch_size)
    with tempfile.TemporaryDirectory() as name, quietly(), full_precision(config, device), freed_memory_kept(device):
        method, trainer, held = in_second_epoch(config, shards, Path(name) / "run", device)
        batches, augment = cycle(held), trainer.augment
        assert augment is not None
        bare = prepare_for(method.build(config), device).train()
        optimizer = build_optimizer(bare, config.optim)
        forwards = forwards_of(method, lambda: trainer.train_batch(next(batches)))

        def step() -> None:
            for _ in range(steps):
                trainer.train_batch(next(batches))

        def alone() -> None:
            for _ in range(steps):
                batch = next(batches)
                assert batch.draws is not None
                views = augment(batch.clip_ids, batch.views, batch.draws, method.mixup_centroids)
                by_shape, outputs, blocks = {view.shape: view for view in views}, list[Tensor](), list[Tensor]()
                for shape, trained in forwards:
                    with torch.set_grad_enabled(trained), autocast(config, device):
                        made, more = found if isinstance(found := bare(by_shape[shape]), tuple) else (found, [])
                    outputs += [made, *([more] if isinstance(more, Tensor) else [])] if trained else []
                    blocks += more if isinstance(more, list) else []  # of DeLoRes-M, whose keys pass its heads too
                with autocast(config, device):
                    outputs += bare.get_submodule("heads")(*blocks) if blocks else []
                torch.stack([output.sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        rates = pairs_of(
            lambda: steps * size / seconds_of(step, device), lambda: steps * size / seconds_of(alone, device), repeats
        )
    trained = sum(gradient for _, gradient in forwards)
    return *rates, f"{trained}+{len(forwards) - trained}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="in one timing")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument(
        "--width", type=int, default=64, help="of the encoder; 64: the paper's, with the heads of each recipe"
    )
    parser.add_argument("--quick", action="store_true", help="tiny, one repeat, to see that it works")
    given = parser.parse_args()
    if given.quick:
        given.batch_size, given.steps, given.precisions, given.width, given.repeats = 8, 1, ["fp32"], 4, 1
    device, size = torch.device(given.device), given.batch_size
    heads = {} if given.width == 64 else width_values(given.width)
    with tempfile.TemporaryDirectory() as name:
        shards = synthetic_set(Path(name), 8 * given.batch_size, 1.5)
        for amp, method in product(given.precisions, given.methods):
            values = {**heads, "train.amp": amp, "train.batch_size": size}
            if method in READ_BY["cluster.k"]:
                values["cluster.k"] = min(128 if method == "slicer" else 512, 8 * size)
            config = with_values(preset("recommended", "pretrain", method), values)
            settings = {"method": method, "width": given.width, "batch": size, "amp": amp}
            step, bare, passes = step_and_bare(config, shards, device, given.repeats, given.steps)
            settings["passes"] = passes
            record("methods", "step", "clips/s", step, device, **settings)
            record("methods", "bare networks", "clips/s", bare, device, **settings)
            ratios = [one / other for one, other in zip(step, bare, strict=True)]
            record("methods", "step / bare networks, same repeat", "ratio", ratios, device, **settings)


if __name__ == "__main__":
    main()
