"""What `plan` says of an epoch here beside epochs of the real `train pretrain`, for sets of three sizes.

Rates and epochs are measured in turns, repeat after repeat: on a shared machine both change by more than the model
errs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measure import arguments, record

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.estimate import Machine, estimate
from unfused_fast.commands.measure.parts import log_of
from unfused_fast.commands.measure.rates import measured_here
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import preset, with_values
from unfused_fast.memory import free_memory
from unfused_fast.stages import pretrain
from unfused_fast.training import Options

WARM_UP = 2
"""Epochs that do not count: the first compiles and allocates, the second's time holds the first save and its plot."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=16, help="channels of the encoder; 64 is the paper's")
    given = parser.parse_args()
    device = torch.device(given.device)
    options, free = Options(device), free_memory(device)
    config = with_values(preset("recommended", "pretrain"), {**width_values(given.width), "train.epochs": WARM_UP + 4})
    machine = Machine(device.type, free.device, free.host)
    ratios: dict[int, list[float]] = {clips: [] for clips in given.clips}
    for _ in range(given.repeats):
        for clips, found in ratios.items():
            rates = measured_here(config, options, clips, given.seconds)
            planned = estimate(config, clips, given.seconds, machine, rates)["epoch_seconds"]
            with tempfile.TemporaryDirectory() as name:
                out = Path(name) / "run"
                pretrain(config, synthetic_set(Path(name), clips, given.seconds), out, options)
                rows = log_of(out)[WARM_UP:]
            found += [planned / (row["epoch_seconds"] + row["parts"].get("save", 0.0)) for row in rows]
    for clips, found in ratios.items():
        settings = {"clips": clips, "seconds": given.seconds, "width": given.width, "rounds": given.repeats}
        record("plan", "seconds of an epoch, planned / measured", "ratio", found, device, **settings)


if __name__ == "__main__":
    main()
