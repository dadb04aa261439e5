"""How many clips a second `unfused-fast shard` packs, beside decoding, resampling and writing alone in the same run."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from measure import record, repeat


def make_files(folder: Path, clips: int, seconds: float, rate: int) -> None:
    """Stereo noise as 16-bit WAV: what most data sets ship."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(clips):
        noise = (generator.standard_normal((int(seconds * rate), 2)) * 0.1).astype(np.float32)
        soundfile.write(folder / f"{number:06d}.wav", noise, rate)


def packed(folder: Path, out: Path, workers: int) -> float:
    """Clips a second of the command line, without the interpreter's start."""
    command = [
        sys.executable,
        "-m",
        "unfused_fast",
        "shard",
        folder,
        out,
        "--workers",
        workers,
        "--overwrite",
        "--json",
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["clips_per_second"])


def bare_share(paths: list[Path], out: Path) -> None:
    """Decodes, mixes down, resamples and writes; checks, hashes and orders nothing."""
    with out.open("wb") as file:
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            member = io.BytesIO()
            mono = soxr.resample(samples.mean(axis=1), rate, 16000)
            soundfile.write(member, mono, 16000, format="WAV", subtype="PCM_16")
            file.write(member.getvalue())


def bare(folder: Path, out: Path, workers: int) -> float:
    """Clips a second of bare_share, the files shared out between processes that exist already when the clock starts."""
    paths = sorted(folder.iterdir())
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        start = time.perf_counter()
        shares = [(paths[number::workers], out.with_suffix(f".{number}")) for number in range(workers)]
        pool.starmap(bare_share, shares, chunksize=1)
        return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=44100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    shape = {"clips": given.clips, "seconds": given.seconds, "rate_hz": given.rate, "channels": 2}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        make_files(source, given.clips, given.seconds, given.rate)
        for workers in sorted({os.cpu_count() or 1, 1}, reverse=True):
            for what, run in (("unfused-fast shard", packed), ("decode + resample + write alone", bare)):
                rates = repeat(partial(run, source, Path(name) / "out", workers), given.repeats)
                record("packing", what, "clips/s", rates, torch.device("cpu"), workers=workers, **shape)


if __name__ == "__main__":
    main()
