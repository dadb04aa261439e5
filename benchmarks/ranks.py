"""Clips a second of the same `train pretrain` on 1, 2, ... processes: strong scaling, the batch is of all of them.

Each repeat trains anew on each number of processes, one after the other, so that a speed-up compares neighbours in
time. The first epoch of each training is warm-up (compile, page cache, bank) and does not count. On CPUs the processes
share the cores: a speed-up there is what threads of one process leave unused. The share of time in collectives, with
waiting for slower ranks, is that of rank 0's host: on GPUs it is not the time of the operations.

With --memory, instead, the peak resident memory of each process, of which log-mels and bank are a rank's own part:

    python benchmarks/ranks.py --memory --processes 1 2 4 --clips 16384 --seconds 10 --width 4 --epochs 1
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
from measure import arguments, peaks_of_processes, record

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.parts import log_of
from unfused_fast.commands.measure.synthetic import synthetic_set


def counts(device: str) -> list[int]:
    """1, 2, 4, ... up to the GPUs, and all of them; 1 and 2 on CPUs."""
    found = max(1, torch.cuda.device_count()) if device == "cuda" else 2
    return sorted({1 << power for power in range(found.bit_length())} | {found})


def command(shards: Path, out: Path, processes: int, flags: list[str]) -> list[str]:
    """`train pretrain` on so many processes."""
    words = [sys.executable, "-m", "unfused_fast", "train", "pretrain", str(shards), "--out", str(out), *flags]
    return [*words, "--devices", str(processes)]


def epochs_of(shards: Path, out: Path, processes: int, flags: list[str]) -> list[dict[str, Any]]:
    """What the log says of the epochs of a training, without the first."""
    words = command(shards, out, processes, flags)
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return log_of(out)[1:]


def memory(shards: Path, folder: Path, processes: list[int], flags: list[str], **settings: object) -> None:
    """Records the peak of each process; the log-mels are made before, so that no process decodes."""
    epochs_of(shards, folder / "first", 1, [*flags, "--epochs", "1"])
    settings["log_mels_gb"] = round(sum(path.stat().st_size for path in shards.glob("*.cache/*")) / 1e9, 2)
    for count in processes:
        peaks = peaks_of_processes(command(shards, folder / f"run-{count}", count, flags), count)
        gigabytes = [peak / 1e9 for peak in peaks]
        record("ranks", "peak memory of a process", "GB", gigabytes, torch.device("cpu"), processes=count, **settings)


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
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    given = parser.parse_args()
    processes = sorted(set(given.processes or counts(given.device)))
    values = {**width_values(given.width), "cluster.k": given.k, "train.batch_size": given.batch_size}
    flags = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    flags += ["--device", given.device, "--data", "resident", "--epochs", str(given.epochs)]
    settings: dict[str, object] = {"clips": given.clips, "seconds": given.seconds, "width": given.width}
    settings |= {"batch": given.batch_size, "k": given.k}
    rounds = list[dict[int, list[dict[str, Any]]]]()
    with tempfile.TemporaryDirectory() as name:
        shards = synthetic_set(Path(name), given.clips, given.seconds).directory
        if given.memory:
            memory(shards, Path(name), processes, flags, **settings)
            return
        for number in range(given.repeats):
            outs = {count: Path(name) / f"run-{number}-{count}" for count in processes}
            rounds.append({count: epochs_of(shards, out, count, flags) for count, out in outs.items()})
    settings["load"] = round(os.getloadavg()[0], 1)  # more than the cores: others compute too
    device = torch.device(given.device)
    medians = [
        {count: median(epoch["clips_per_second"] for epoch in found) for count, found in one.items()} for one in rounds
    ]
    for count in processes:
        rates = [epoch["clips_per_second"] for found in rounds for epoch in found[count]]
        shown = {"processes": count, **settings, "loss": rounds[-1][count][-1]["loss"]}
        record("ranks", "train pretrain", "clips/s", rates, device, **shown)
        if count > 1:
            epochs = [epoch for found in rounds for epoch in found[count]]
            shares = [100 * epoch["parts"]["collectives"] / epoch["epoch_seconds"] for epoch in epochs]
            record("ranks", "share of time in collectives, of rank 0", "%", shares, device, **shown)
        if count > processes[0]:
            ratios = [one[count] / one[processes[0]] for one in medians]
            record("ranks", f"speed-up over processes={processes[0]}", "x", ratios, device, **shown)


if __name__ == "__main__":
    main()
