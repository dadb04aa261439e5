"""How long saving the memory bank blocks training and takes in all, beside the disk alone writing the same bytes.

python benchmarks/bench_bank.py --rows 200000 --dim 512

In one run and by turns: the snapshot and its writer, and the floor: the same bytes into one file, then fsync. Also
reading from the disk: all rows verified, and raw.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import record, seconds_of

from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_files import open_bank

WARM_UP = 3
"""Turns that do not count: they make the buffers, and in a virtual machine touch memory that was never used before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    bank = MemoryBank(given.rows, given.dim, 0, device, given.dtype)
    bank.rows.normal_()
    assignments = torch.randint(512, (given.rows,), device=device)
    bits = bank.rows.cpu().view(torch.int32 if given.dtype == "fp32" else torch.int16).numpy()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        for turn in range(-WARM_UP, given.repeats):
            measured: dict[str, Callable[[], object]] = {
                "rows to the disk: MemoryBank.snapshot": partial(
                    saved, bank, folder / "bank", turn + WARM_UP, assignments
                ),
                "rows to the disk: write + fsync of one file": lambda: written(folder / "raw", bits),
                "rows from the disk: every chunk verified": lambda: read_verified(folder / "bank", given.rows),
                "rows from the disk: read()": lambda: read_raw(folder / "raw"),
            }
            for what, work in measured.items():
                took = seconds_of(work, device)
                if turn >= 0:
                    seconds.setdefault(what, []).append(took)
            blocked = seconds_of(lambda: bank.snapshot(folder / "bank", 0, assignments), device)
            if turn >= 0:
                seconds.setdefault("rows of which training waits: MemoryBank.snapshot", []).append(blocked)
        size = bits.nbytes + 8 * given.rows
    settings = {
        "rows": given.rows,
        "dim": given.dim,
        "dtype": given.dtype,
        "threads": torch.get_num_threads(),
        "GB": round(size / 1e9, 3),
    }
    for what, values in seconds.items():
        record("bench_bank", what, "rows/s", [given.rows / value for value in values], device, **settings)
    waits = seconds["rows of which training waits: MemoryBank.snapshot"]
    record(
        "bench_bank", "training waits: MemoryBank.snapshot", "ms", [1000 * value for value in waits], device, **settings
    )


def saved(bank: MemoryBank, folder: Path, epoch: int, assignments: torch.Tensor) -> None:
    """The save from its start until the generation is published and the oldest deleted."""
    bank.snapshot(folder, epoch, assignments)()


def written(path: Path, bits: object) -> None:
    """The floor: the same bytes into a new file, then fsync, then an older file of the same size deleted."""
    before = path.with_suffix(".before")
    if path.exists():
        path.replace(before)
    with path.open("wb") as file:
        file.write(bits.data)  # type: ignore[attr-defined]
        file.flush()
        os.fsync(file.fileno())
    before.unlink(missing_ok=True)


def read_verified(folder: Path, rows: int) -> None:
    """Every chunk of the newest generation through zarr, compared with its checksum."""
    generation = open_bank(folder)
    for path in generation.path.rglob("0"):
        if path.is_file():
            forget(path)
    if sum(len(block) for _, block in generation.blocks()) != rows:
        raise SystemExit("rows are missing")


def read_raw(path: Path) -> None:
    """The same bytes, a chunk's worth at a time."""
    forget(path)
    with path.open("rb", buffering=0) as file:
        while file.read(16 * 2**20):
            pass


def forget(path: Path) -> None:
    """Takes a file out of the page cache, so that it is read from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
