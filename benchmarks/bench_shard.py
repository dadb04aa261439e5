"""How many clips a second `unfused-fast shard` packs, beside the floor in the same run, and how much memory it takes.

The floor decodes with libsndfile, resamples with soxr (HQ, as the packer) and writes WAV, in as many processes, and
does nothing else. Both are whole programs, from their start to their end: interpreter, imports, processes, opening
files, index and statistics count. Files come from the page cache, because they have just been read by the warm-up.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE_HZ = 16000


def floor_share(folder: Path, out: Path, number: int, workers: int) -> None:
    """Every `workers`-th file: decoded, mixed down, resampled, written."""
    paths = sorted(folder.rglob("*.*"))[number::workers]
    with out.open("wb") as file:
        for path in paths:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            mono: NDArray[np.float32] = np.ascontiguousarray(samples[:, 0])
            for channel in range(1, samples.shape[1]):
                mono += samples[:, channel]
            mono /= samples.shape[1]
            if rate_hz != RATE_HZ:
                mono = soxr.resample(mono, rate_hz, RATE_HZ, "HQ")
            member = io.BytesIO()
            soundfile.write(member, mono, RATE_HZ, format="WAV", subtype="PCM_16")
            file.write(member.getvalue())


def floor(folder: Path, out: Path, workers: int) -> None:
    """The floor, as a program of its own."""
    context = multiprocessing.get_context("fork")
    shares = [
        context.Process(target=floor_share, args=(folder, out.with_suffix(f".{number}"), number, workers))
        for number in range(workers)
    ]
    for share in shares:
        share.start()
    for share in shares:
        share.join()
        assert share.exitcode == 0


def main() -> None:
    import torch
    from measure import arguments, pairs_of, peak_megabytes, record

    from unfused_fast.commands.measure.synthetic import noise_files

    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=44100, help="of the files, in hertz")
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--kind", choices=["wav", "flac"], default="wav", help="16-bit files of this format")
    parser.add_argument("--memory", action="store_true", help="measure memory in place of time")
    given = parser.parse_args()
    shape = {"clips": given.clips, "seconds": given.seconds, "rate_hz": given.rate, "channels": given.channels}
    shape |= {"kind": given.kind, "workers": (workers := os.cpu_count() or 1)}
    with tempfile.TemporaryDirectory() as name:
        source, out = str(Path(name) / "source"), str(Path(name) / "out")
        noise_files(Path(source), given.clips, given.seconds, given.rate, given.channels, given.kind)

        ours = ["-m", "unfused_fast", "shard", source, out, "--workers", str(workers), "--overwrite"]
        if given.memory:
            peaks = [peak_megabytes([sys.executable, *ours]) for _ in range(given.repeats)]
            record("bench_shard", "peak memory of unfused-fast shard", "MB", peaks, torch.device("cpu"), **shape)
            return

        def rate(*program: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, *program], capture_output=True, check=True)
            return float(given.clips / (time.perf_counter() - start))

        packed, bare = pairs_of(
            lambda: rate(*ours), lambda: rate(__file__, "floor", source, out, str(workers)), given.repeats
        )
    for what, unit, values in (
        ("floor: decode + resample + write", "clips/s", bare),
        ("unfused-fast shard", "clips/s", packed),
        ("unfused-fast shard / floor", "", [one / other for one, other in zip(packed, bare, strict=True)]),
    ):
        record("bench_shard", what, unit, values, torch.device("cpu"), **shape)


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        floor(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
