"""Recordings of noise and a shard set of them, for measuring without a real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import soundfile

from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.source_rows import source_rows


def noise_files(
    folder: Path, count: int, seconds: float, rate_hz: int = 16000, channels: int = 1, ending: str = "wav"
) -> list[Path]:
    """Recordings below `folder`, 1,000 a folder, of noise that is not white, so that FLAC has something to predict."""
    generator, length, paths = np.random.default_rng(0), round(seconds * rate_hz), list[Path]()
    for number in range(count):
        paths.append(folder / f"{number // 1000:03d}" / f"{number:07d}.{ending}")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        noise = generator.standard_normal((length + 1, channels), dtype=np.float32)
        soundfile.write(paths[-1], 0.1 * (noise[1:] + 0.9 * noise[:-1]), rate_hz)
    return paths


def synthetic_set(folder: Path, clips: int, seconds: float) -> ShardSet:
    """A shard set of noise in `folder`, which has to hold it twice while it is made. Raises UserError: no room."""
    needed, free = round(2 * clips * (seconds * 32000 + 4096)), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--synthetic {clips}: {needed / 1e9:.1f} GB on disk are needed, {free / 1e9:.1f} GB are free in "
            f"{folder.parent}; take fewer clips, or set TMPDIR to a larger disk"
        )
    source = folder / "source"
    with console.status(f"making {clips} clips of {seconds:g} s"):
        noise_files(source, clips, seconds)
        packed = pack(source_rows(source), folder / "shards", max_seconds=seconds, statistics=log_mel_statistics)
        shutil.rmtree(source)
    return packed.shard_set
