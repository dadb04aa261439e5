"""How many clips a second a pre-training step takes, by width of the encoder, precision and mode of torch.compile, and
what share of the measured matmul rate that is; and what all else that training does costs beside the bare network:
forward of the bank view, forward and backward of the training view.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from measure import arguments, pairs_of, record, seconds_of

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.flags import CompileMode
from unfused_fast.commands.measure import parts
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import Config, with_values
from unfused_fast.memory import freed_memory_kept
from unfused_fast.methods import Method
from unfused_fast.models import PretrainNetwork
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training import Options, Run, Trainer, autocast, full_precision, prepare_for, quietly


def begun(config: Config, shards: ShardSet, out: Path, device: torch.device) -> tuple[Method, Trainer]:
    """`train pretrain` from memory, at the beginning of epoch 1."""
    options, config = Options(device, compile=False), with_values(config, {"data.store": "resident"})
    method, trainer = pretrainer(config, shards, options, Run(out, "pretrain", config, shards, options))
    trainer.start()
    trainer.begin_epoch(1)
    return method, trainer


def whole_and_bare(
    config: Config, shards: ShardSet, device: torch.device, repeats: int
) -> tuple[list[float], list[float]]:
    """Clips a second of `train pretrain` itself (batches from memory, views, step, bank), and of the bare network on a
    view that is there.
    """
    size, clips = int(config.train.batch_size), shards.manifest.splits["train"].clips
    with tempfile.TemporaryDirectory() as name, quietly():
        _, trainer = begun(config, shards, Path(name) / "run", device)
        bare = prepare_for(PretrainNetwork(config), device).train()
        view = torch.randn(size, 1, config.frontend.n_mels, config.crop_frames, device=device)

        def epoch() -> None:
            for batch in trainer.batches(1):
                trainer.train_batch(batch)

        def alone() -> None:
            for _ in range(clips // size):
                with torch.no_grad(), autocast(config, device):
                    bare(view)
                with autocast(config, device):
                    made = bare(view)
                made.sum().backward()
                bare.zero_grad(set_to_none=True)

        # as Trainer.fit does; around `parts.step` too it would end with that one's own
        with full_precision(config, device), freed_memory_kept(device):
            return pairs_of(
                lambda: clips / seconds_of(epoch, device), lambda: clips / seconds_of(alone, device), repeats
            )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="in one timing of training")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=["none", *get_args(get_args(CompileMode)[0])],
        default=["none", "default"],
        help="of torch.compile; none compiles nothing, reduce-overhead and max-autotune need a GPU",
    )
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    given = parser.parse_args()
    device, size = torch.device(given.device), given.batch_size
    with tempfile.TemporaryDirectory() as name:
        shards = synthetic_set(Path(name), given.steps * size, 2.0)
        for width, amp in product(given.width, given.precisions):
            values = {"train.amp": amp, "train.batch_size": size, "cluster.k": min(512, given.steps * size)}
            config = with_values(Config(), {**width_values(width), **values})
            settings = {"width": width, "batch": size, "amp": amp}
            for mode in given.modes:
                compiles = mode != "none"
                options = Options(device, compile=compiles, compile_mode=mode if compiles else "default")
                for row in parts.step(parts.Bench(shards, config, options, quick=given.repeats == 1)):
                    share = f"{row.share:.3f}"
                    record("step", row.what, row.unit, row.values, device, compile=mode, of_matmul=share, **settings)
            config = with_values(config, {"cluster.k": 32})
            whole, bare = whole_and_bare(config, shards, device, given.repeats)
            record("step", "train pretrain, from memory", "clips/s", whole, device, **settings)
            record("step", "bare forward + forward + backward", "clips/s", bare, device, **settings)
            ratios = [other / one for one, other in zip(whole, bare, strict=True)]
            record("step", "time of training / bare, same repeat", "ratio", ratios, device, **settings)


if __name__ == "__main__":
    main()
