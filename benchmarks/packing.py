"""How many clips a second `unfused-fast shard` packs, beside decoding, resampling and writing alone in the same run."""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from measure import record, repeat

from unfused_fast.audio import log_mel_statistics
from unfused_fast.shards.sources import SourceRow
from unfused_fast.shards.write import pack


def make_files(folder: Path, clips: int, seconds: float, rate: int) -> list[SourceRow]:
    """Stereo noise as 16-bit WAV: what most data sets ship."""
    generator, rows = np.random.default_rng(0), []
    for number in range(clips):
        path = folder / f"{number:06d}.wav"
        soundfile.write(path, (generator.standard_normal((int(seconds * rate), 2)) * 0.1).astype(np.float32), rate)
        rows.append(SourceRow(path, path.name))
    return rows


def floor(rows: list[SourceRow], out: Path) -> None:
    """One process that decodes, mixes down, resamples and writes, and checks nothing."""
    with out.open("wb") as file:
        for row in rows:
            samples, rate = soundfile.read(row.path, dtype="float32", always_2d=True)
            member = io.BytesIO()
            soundfile.write(
                member, soxr.resample(samples.mean(axis=1), rate, 16000), 16000, format="WAV", subtype="PCM_16"
            )
            file.write(member.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=44100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    settings = {"clips": given.clips, "seconds": given.seconds, "rate_hz": given.rate, "channels": 2}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_files(folder, given.clips, given.seconds, given.rate)

        def packed(workers: int | None) -> float:
            shutil.rmtree(folder / "out", ignore_errors=True)
            result = pack(rows, folder / "out", workers=workers, statistics=log_mel_statistics)
            return result.packed / result.wall_seconds

        def bare() -> float:
            start = time.perf_counter()
            floor(rows, folder / "floor.bin")
            return given.clips / (time.perf_counter() - start)

        rates = {
            "shard, one process a core": repeat(lambda: packed(None), given.repeats),
            "shard, one process": repeat(lambda: packed(1), given.repeats),
            "decode + resample + write alone, one process": repeat(bare, given.repeats),
        }
        for what, values in rates.items():
            record("packing", what, "clips/s", values, torch.device("cpu"), **settings)


if __name__ == "__main__":
    main()
