"""What a split held in memory takes beside its log-mels: peak resident memory from the Loader to the end of an epoch.

python resident_memory.py SMALL LARGE: sets of the same clips, few and many; log-mels of LARGE are in its cache. Prints
their bytes, and by how much the peak rose: while they are loaded, and over an epoch and a pass of whole clips.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from unfused_fast.config.fields import Config
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.shards.sets.table import open_shards


def status(name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def held(loader: Loader, done: Callable[[], None] = lambda: None) -> int:
    """Bytes of the log-mels of a split, after an epoch out of them; `done` is called when they are there."""
    batches = placed(loader, "resident")
    assert isinstance(batches, ResidentLoader)
    done()
    for _ in itertools.chain(batches.epoch(1), batches.whole_clips()):
        pass
    return batches.frames.nbytes


def stream(folder: str) -> Loader:
    return Loader(open_shards(Path(folder)), "train", Config(), device=torch.device("cpu"), batch_size=4)


def main() -> None:
    small, large = sys.argv[1:]
    torch.set_num_threads(1)
    held(stream(small))  # libraries, thread pools
    loader, peaks = stream(large), list[int]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    size = held(loader, lambda: peaks.append(status("VmHWM") - before))
    print(size, *peaks, status("VmHWM") - before)


if __name__ == "__main__":
    main()
