"""A shard set of noise, for measuring without a real one."""

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


def synthetic_set(folder: Path, clips: int, seconds: float) -> ShardSet:
    """A shard set of noise in `folder`, which has to hold it twice while it is made. Raises UserError: no room."""
    needed, free = round(2 * clips * (seconds * 32000 + 4096)), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--synthetic {clips}: {needed / 1e9:.1f} GB on disk are needed, {free / 1e9:.1f} GB are free in "
            f"{folder.parent}; take fewer clips, or set TMPDIR to a larger disk"
        )
    generator, source = np.random.default_rng(0), folder / "source"
    with console.status(f"making {clips} clips of {seconds:g} s"):
        for number in range(clips):
            path = source / f"{number // 1000:03d}" / f"{number:07d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, generator.uniform(-0.5, 0.5, round(seconds * 16000)).astype("float32"), 16000)
        packed = pack(source_rows(source), folder / "shards", max_seconds=seconds, statistics=log_mel_statistics)
        shutil.rmtree(source)
    return packed.shard_set
