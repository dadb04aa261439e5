"""How many clips a second `unfused-fast shard` packs, beside the floor in the same run, and how much memory it takes.

The floor decodes with libsndfile, resamples with soxr (HQ, as the packer) and writes WAV, in as many processes, and
does nothing else. Both are whole programs, from their start to their end: interpreter, imports, processes, opening
files, index and statistics count. Files come from the page cache, because they have just been read by the warm-up.
"""

from __future__ import annotations

import argparse
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


def make_files(folder: Path, clips: int, seconds: float, rate_hz: int, channels: int, kind: str) -> None:
    """Noise that is not white, so that FLAC has something to predict; 1,000 files a folder."""
    generator = np.random.default_rng(0)
    noise = np.cumsum(generator.standard_normal((int((seconds + 1) * rate_hz), channels)), axis=0)
    noise[1:] -= 0.95 * noise[:-1]
    noise *= 0.2 / np.abs(noise).max()
    for number in range(clips):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = int(generator.integers(rate_hz))
        soundfile.write(path, noise[start : start + int(seconds * rate_hz)], rate_hz)


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


def command(what: str, source: Path, out: Path, workers: int) -> list[str]:
    """The program to be timed."""
    if what == "floor":
        words = [sys.executable, __file__, "--floor", source, out, workers]
    else:
        words = [sys.executable, "-m", "unfused_fast", "shard", source, out, "--workers", workers, "--overwrite"]
    return [str(word) for word in words]


def clips_per_second(what: str, source: Path, out: Path, workers: int, clips: int) -> float:
    """Of one run, start to end."""
    start = time.perf_counter()
    subprocess.run(command(what, source, out, workers), capture_output=True, check=True)
    return clips / (time.perf_counter() - start)


def peak_megabytes(source: Path, out: Path, workers: int) -> float:
    """Most memory that the packer and its processes hold at one time: the sum of their proportional set sizes."""
    process = subprocess.Popen(command("shard", source, out, workers), stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        family = {process.pid}
        stats = list(Path("/proc").glob("[0-9]*/stat"))
        for _ in range(3):  # children, their children, theirs
            for path in stats:
                try:
                    number, rest = path.read_text().split(" ", 1)
                    if int(rest.rpartition(") ")[2].split()[1]) in family:
                        family.add(int(number))
                except (OSError, ProcessLookupError):
                    continue
        total = 0
        for member in family:
            try:
                lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except (OSError, ProcessLookupError):
                continue
        peak = max(peak, total / 1024)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the packer ended with {process.returncode}")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=44100)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--kind", choices=["wav", "flac"], default="wav", help="16-bit files of this format")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--floor", nargs=3, metavar=("SOURCE", "OUT", "WORKERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.floor:
        floor(Path(given.floor[0]), Path(given.floor[1]), int(given.floor[2]))
        return
    import torch
    from measure import record

    shape = {
        "clips": given.clips,
        "seconds": given.seconds,
        "rate_hz": given.rate,
        "channels": given.channels,
        "kind": given.kind,
        "workers": (workers := os.cpu_count() or 1),
    }
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        make_files(source, given.clips, given.seconds, given.rate, given.channels, given.kind)
        if given.memory:
            record(
                "bench_shard",
                "peak memory of unfused-fast shard",
                "MB",
                [peak_megabytes(source, out, workers)],
                device,
                **shape,
            )
            return
        rates: dict[str, list[float]] = {"floor": [], "shard": []}
        clips_per_second("floor", source, out, workers, given.clips)
        for _ in range(given.repeats):  # in turns, so that both see the same machine
            for what, found in rates.items():
                found.append(clips_per_second(what, source, out, workers, given.clips))
        record("bench_shard", "floor: decode + resample + write", "clips/s", rates["floor"], device, **shape)
        record("bench_shard", "unfused-fast shard", "clips/s", rates["shard"], device, **shape)
        shares = [ours / bare for ours, bare in zip(rates["shard"], rates["floor"], strict=True)]
        record("bench_shard", "unfused-fast shard / floor", "", shares, device, **shape)


if __name__ == "__main__":
    main()
