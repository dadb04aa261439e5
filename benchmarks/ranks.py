"""Clips a second of the same `train pretrain` on 1, 2, ... processes: strong scaling, the batch is of all of them.

Each repeat trains anew on each number of processes, one after the other, so that a speed-up compares neighbours in
time. The first epoch of each training is warm-up (compile, page cache, bank) and does not count. On CPUs the processes
share the cores: a speed-up there is what threads of one process leave unused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import arguments, record

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.parts import log_of
from unfused_fast.commands.measure.synthetic import synthetic_set


def counts(device: str) -> list[int]:
    """1, 2, 4, ... up to the GPUs, and all of them; 1 and 2 on CPUs."""
    found = max(1, torch.cuda.device_count()) if device == "cuda" else 2
    return sorted({1 << power for power in range(found.bit_length())} | {found})


def epochs_of(shards: Path, out: Path, processes: int, flags: list[str]) -> list[dict[str, Any]]:
    """What the log says of the epochs of a training, without the first."""
    command = [sys.executable, "-m", "unfused_fast", "train", "pretrain", str(shards), "--out", str(out), *flags]
    done = subprocess.run([*command, "--devices", str(processes)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} --devices {processes}: exit code {done.returncode}\n{done.stderr}")
    return log_of(out)[1:]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--processes", type=int, nargs="+", help="default: 1, 2, 4, ... up to the GPUs; 1 and 2 on CPUs"
    )
    parser.add_argument("--epochs", type=int, default=6, help="of each training; the first does not count")
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip")
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder; 64 is the paper's")
    parser.add_argument("--batch-size", type=int, default=64, help="clips of a batch, on all processes together")
    parser.add_argument("--k", type=int, default=64, help="clusters")
    given = parser.parse_args()
    processes = sorted(set(given.processes or counts(given.device)))
    values = {**width_values(given.width), "cluster.k": given.k, "train.batch_size": given.batch_size}
    flags = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    flags += ["--device", given.device, "--data", "resident", "--epochs", str(given.epochs)]
    rounds = list[dict[int, list[dict[str, Any]]]]()
    with tempfile.TemporaryDirectory() as name:
        shards = synthetic_set(Path(name), given.clips, given.seconds).directory
        for number in range(given.repeats):
            outs = {count: Path(name) / f"run-{number}-{count}" for count in processes}
            rounds.append({count: epochs_of(shards, out, count, flags) for count, out in outs.items()})
    settings: dict[str, object] = {"clips": given.clips, "seconds": given.seconds, "width": given.width}
    settings |= {"batch": given.batch_size, "k": given.k}
    settings["load"] = round(os.getloadavg()[0], 1)  # more than the cores: others compute too
    device = torch.device(given.device)
    medians = [
        {count: median(epoch["clips_per_second"] for epoch in found) for count, found in one.items()} for one in rounds
    ]
    for count in processes:
        rates = [epoch["clips_per_second"] for found in rounds for epoch in found[count]]
        shown = {"processes": count, **settings, "loss": rounds[-1][count][-1]["loss"]}
        record("ranks", "train pretrain", "clips/s", rates, device, **shown)
        if count > processes[0]:
            ratios = [one[count] / one[processes[0]] for one in medians]
            record("ranks", f"speed-up over processes={processes[0]}", "x", ratios, device, **shown)


if __name__ == "__main__":
    main()
