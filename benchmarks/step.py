"""How many clips a second a pre-training step takes, by width of the encoder, precision and compile; and what all else
that training does costs beside the bare network: forward of the bank view, forward and backward of the training view.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from loader import write_noise
from measure import record, repeat, seconds_of
from torch.nn.functional import cross_entropy, normalize

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.augment import Augmenter
from unfused_fast.data.memory import freed_memory_kept
from unfused_fast.mel import log_mel_statistics
from unfused_fast.models.audiontt import PretrainNetwork
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.optim import build_optimizer
from unfused_fast.training.options import Options, autocast, compiled, full_precision, prepare_for, quietly
from unfused_fast.training.run_directory import Run


class Step:
    """A pre-training step on random crops: views, two forwards, backward, update."""

    def __init__(self, config: Config, device: torch.device, size: int, compile_: bool) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.network = prepare_for(PretrainNetwork(config), device).train()
        self.forward = compiled(self.network, Options(device, compile=compile_))
        self.optimizer = build_optimizer(self.network, config.optim)
        self.augment = Augmenter(config, 2048, device)
        self.crops, self.ids = torch.randn(size, 1, 64, 96, device=device), torch.arange(size, device=device)
        self.prototypes = normalize(torch.randn(512, config.model.proj_dim, device=device), dim=1)
        self.targets = torch.randint(512, (size,), device=device)

    def __call__(self) -> None:
        bank_view, train_view = self.augment(self.ids, (self.crops, self.crops), 1)
        with full_precision(self.config, self.device):
            with torch.no_grad(), autocast(self.config, self.device):
                self.forward(bank_view)
            with autocast(self.config, self.device):
                projections = self.forward(train_view)
            loss = cross_entropy(projections @ self.prototypes.T / 0.1, self.targets)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def whole_and_bare(config: Config, device: torch.device, steps: int, repeats: int) -> tuple[list[float], list[float]]:
    """Clips a second of `train pretrain` itself (batches from memory, views, step, bank), and of the bare network on a
    view that is there; in turn, so that each pair compares neighbours in time.
    """
    size = int(config.train.batch_size)
    with tempfile.TemporaryDirectory() as name, quietly():
        folder = Path(name)
        rows = [SourceRow(path, path.name) for path in write_noise(folder, steps * size, 2.0)]
        shards = pack(rows, folder / "set", statistics=log_mel_statistics).shard_set
        options = Options(device, compile=False)
        config = with_values(config, {"data.store": "resident"})
        trainer = pretrainer(config, shards, options, Run(folder / "run", "pretrain", config, shards, options))[1]
        trainer.start()
        trainer.begin_epoch(1)
        bare, view = prepare_for(PretrainNetwork(config), device).train(), torch.randn(size, 1, 64, 96, device=device)

        def epoch() -> None:
            for batch in trainer.batches(1):
                trainer.train_batch(batch, 1)

        def alone() -> None:
            for _ in range(steps):
                with torch.no_grad(), autocast(config, device):
                    bare(view)
                with autocast(config, device):
                    made = bare(view)
                made.sum().backward()
                bare.zero_grad(set_to_none=True)

        epoch()
        alone()
        pairs = [(seconds_of(epoch, device), seconds_of(alone, device)) for _ in range(repeats)]
    return [steps * size / one for one, _ in pairs], [steps * size / other for _, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="steps in one timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    with freed_memory_kept(device):
        for width, amp, compile_ in product(given.width, given.precisions, (False, True)):
            values = {
                "model.channels": width,
                "model.dim": 32 * width,
                "model.proj_hidden": 32 * width,
                "train.amp": amp,
            }
            step = Step(with_values(Config(), values), device, given.batch_size, compile_)

            def steps(step: Step = step) -> None:
                for _ in range(given.steps):
                    step()

            def rate(steps: Callable[[], None] = steps) -> float:
                return float(given.steps * given.batch_size / seconds_of(steps, device))

            settings = {"width": width, "batch": given.batch_size, "amp": amp, "compile": compile_}
            record("step", "pre-training step", "clips/s", repeat(rate, given.repeats), device, **settings)
        for width in given.width:
            values = {
                "model.channels": width,
                "model.dim": 32 * width,
                "model.proj_hidden": 32 * width,
                "cluster.k": 32,
            }
            config = with_values(Config(), {**values, "train.batch_size": given.batch_size, "train.amp": "fp32"})
            whole, bare = whole_and_bare(config, device, given.steps, given.repeats)
            settings = {"width": width, "batch": given.batch_size, "amp": "fp32"}
            record("step", "train pretrain, from memory", "clips/s", whole, device, **settings)
            record("step", "bare forward + forward + backward", "clips/s", bare, device, **settings)
            ratios = [other / one for one, other in zip(whole, bare, strict=True)]
            record("step", "time of training / bare, same repeat", "ratio", ratios, device, **settings)


if __name__ == "__main__":
    main()
