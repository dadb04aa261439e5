"""What `plan` says of an epoch here beside epochs of the real `train pretrain`, for sets of three sizes.

Rates and epochs are measured in turns, round after round: on a shared machine both change by more than the model errs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from measure import record

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.estimate import Machine, estimate
from unfused_fast.commands.measure.rates import measured_here
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config.presets import preset, with_values
from unfused_fast.data.memory import free_memory
from unfused_fast.stages.pretraining import pretrain
from unfused_fast.training.options import Options

WARM_UP = 2
"""Epochs of a round that do not count: the first compiles and allocates, the second's time holds the first save and its
plot.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=16, help="channels of the encoder; 64 is the paper's")
    parser.add_argument("--epochs", type=int, default=6, help=f"of a round; {WARM_UP} are warm-up and do not count")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.epochs <= WARM_UP or given.rounds < 1:
        parser.error(f"want more than {WARM_UP} epochs, and 1 round")
    device = torch.device(given.device)
    options, free = Options(device), free_memory(device)
    values = {
        **width_values(given.width),
        "train.epochs": given.epochs,
    }
    config = with_values(preset("recommended", "pretrain"), values)
    machine = Machine(device.type, float(free.device), float(free.host))
    ratios: dict[int, list[float]] = {clips: [] for clips in given.clips}
    for _ in range(given.rounds):
        for clips, found in ratios.items():
            rates = measured_here(config, options, clips, given.seconds)
            planned = estimate(config, clips, given.seconds, machine, rates)
            with tempfile.TemporaryDirectory() as name:
                out = Path(name) / "run"
                pretrain(config, synthetic_set(Path(name), clips, given.seconds), out, options)
                rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][WARM_UP:]
            measured = [row["epoch_seconds"] + row["parts"].get("save", 0.0) for row in rows]
            found += [planned["epoch_seconds"] / seconds for seconds in measured]
            print(f"{clips} clips planned {planned['epoch_seconds']:.3f} s: {_parts(planned['epoch'])}")
            print(f"{clips} clips measured {statistics.median(measured):.3f} s: {_parts(rows[-1]['parts'])}")
    for clips, found in ratios.items():
        settings = {"clips": clips, "seconds": given.seconds, "width": given.width, "rounds": given.rounds}
        record("plan", "seconds of an epoch, planned / measured", "ratio", found, device, **settings)


def _parts(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())


if __name__ == "__main__":
    main()
