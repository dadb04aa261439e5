"""How many clips a second a pre-training step takes, by width of the encoder, precision and compile."""

from __future__ import annotations

import argparse
from itertools import product

import torch
from measure import record, repeat, seconds_of
from torch.nn.functional import cross_entropy, normalize

from unfused_fast.augment import Augmenter
from unfused_fast.config import Config
from unfused_fast.model import PretrainNetwork
from unfused_fast.optim import build_optimizer
from unfused_fast.settings import with_values
from unfused_fast.training import Options, autocast, compiled, prepare_for


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
        with torch.no_grad(), autocast(self.config, self.device):
            self.forward(bank_view)
        with autocast(self.config, self.device):
            projections = self.forward(train_view)
        cross_entropy(projections @ self.prototypes.T / 0.1, self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="steps in one timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    for width, amp, compile_ in product(given.width, ("bf16", "fp32"), (False, True)):
        values = {"model.channels": width, "model.dim": 32 * width, "model.proj_hidden": 32 * width, "train.amp": amp}
        step = Step(with_values(Config(), values), device, given.batch_size, compile_)

        def rate(step: Step = step) -> float:
            seconds = seconds_of(lambda: [step() for _ in range(given.steps)], device)
            return given.steps * given.batch_size / seconds

        settings = {"width": width, "batch": given.batch_size, "amp": amp, "compile": compile_}
        record("step", "pre-training step", "clips/s", repeat(rate, given.repeats), device, **settings)


if __name__ == "__main__":
    main()
