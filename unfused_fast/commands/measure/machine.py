"""Of this machine: what it is, the rates that bound all others, and the CSV that measured rows are appended to."""

from __future__ import annotations

import csv
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.benchmark import Timer

from unfused_fast import __version__
from unfused_fast.checkout import commit
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.shard_files import index_path, read_index, read_members
from unfused_fast.shards.sets.table import ShardSet


class Spread(NamedTuple):
    """Of repeated measurements: p20, median, p80."""

    p20: float
    p50: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """Quantiles of one or more values."""
    return Spread(*map(float, np.quantile(values, (0.2, 0.5, 0.8))))


def circumstances(device: torch.device) -> dict[str, str | int]:
    """What a figure means nothing without: device, cores, versions, commit of a checkout, date."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count() or 1,
        "versions": f"unfused-fast {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Adds rows to a CSV, with a header where it is new. Raises OSError, or ValueError for a file of other columns."""
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        found = next(csv.reader(file), None)
        if found and found != list(columns):
            raise ValueError(f"its columns are {','.join(found)[:200]}")
        writer = csv.DictWriter(file, columns)
        if rows and not found:
            writer.writeheader()
        writer.writerows(rows)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(min(timer.timeit(1).mean for _ in range(6)))


def copy_rate(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes a second that the device's memory moves, reads and writes counted: the best of several copies.

    Ours: measured, as data sheets give what no program reaches.
    """
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source))


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square matrix product in `dtype`: the best of several."""
    size = size or (8192 if device.type == "cuda" else 2048)
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: first @ second)


def decode_rate(shards: ShardSet, most: int) -> float:
    """Clips a second that libsndfile decodes whole with all cores, files in the page cache: `most` of the train
    split's first.
    """
    clips = (
        bytes(members[shards.manifest.codec])
        for tar in shards.shard_paths("train")
        for members in read_members(tar, read_index(index_path(tar)))
    )
    contents = list(islice(clips, most))
    with ThreadPoolExecutor(available_cores()) as pool:
        start = time.perf_counter()
        for _ in pool.map(lambda content: decode_clip(memoryview(content)).astype("float32"), contents):
            pass
        return len(contents) / (time.perf_counter() - start)


def write_rate(folder: Path, size: int = 1 << 28) -> float:
    """Bytes a second that reach the disk of `folder`: one file, written and fsynced."""
    content = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(size >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - start)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
