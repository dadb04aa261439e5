"""How many bytes a second `unfused-fast check` reads, beside reading and hashing the same tars in the same run.

For FLAC what decoding every sample would cost is measured too.
Once from the disk (the system is told to forget the files before each run) and once from memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import soundfile
import torch
from measure import arguments, record

from unfused_fast.commands.measure.synthetic import noise_files
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import index_path, read_index, read_members
from unfused_fast.shards.sources.source_rows import source_rows

BLOCK_BYTES = 1 << 20


def checked(out: Path, workers: int) -> float:
    """Wall seconds of the command line, start of the worker processes included, without the interpreter's own."""
    command = [sys.executable, "-m", "unfused_fast", "check", str(out), "--workers", str(workers), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def hash_bytes(tars: list[Path]) -> None:
    """Reads tars from end to end, in blocks that stay in the cache, and hashes every byte."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for tar in tars:
        digest = hashlib.sha256()
        with tar.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])


def hash_decoded(tars: list[Path]) -> None:
    """Reads the FLAC members, decodes them and hashes their samples."""
    for tar in tars:
        for contents in read_members(tar, read_index(index_path(tar))):
            samples, _ = soundfile.read(io.BytesIO(contents["flac"]), dtype="int16")
            hashlib.sha256(samples).digest()


def forget(out: Path) -> None:
    """Takes the tars out of the system's memory, so that the next read is one of the disk."""
    for tar in out.glob("*.tar"):
        with tar.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shared(work: Callable[[list[Path]], None], out: Path, workers: int) -> float:
    """Wall seconds of `work` with the tars shared out between processes that exist already."""
    tars = sorted(out.glob("*.tar"))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        start = time.perf_counter()
        pool.map(work, [tars[number::workers] for number in range(workers)], chunksize=1)
        return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of WAV in a set")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 1.0])
    parser.add_argument("--codec", nargs="+", default=["wav", "flac"], choices=["wav", "flac"])
    given = parser.parse_args()
    workers = os.cpu_count() or 1
    for seconds, codec in product(given.seconds, given.codec):
        with tempfile.TemporaryDirectory() as name:
            source, out = Path(name) / "source", Path(name) / "out"
            clips = int(given.megabytes * 1e6 / (2 * seconds * 16000))
            noise_files(source, clips, seconds)
            pack(source_rows(source), out, codec=codec)
            megabytes = sum(tar.stat().st_size for tar in out.glob("*.tar")) / 1e6
            runs = {"read + sha256 of all bytes alone": partial(shared, hash_bytes, out, workers)}
            if codec == "flac":
                runs["read + decode + sha256 alone"] = partial(shared, hash_decoded, out, workers)
            runs["unfused-fast check"] = partial(checked, out, workers)
            rates: dict[tuple[str, str], list[float]] = {}
            for _ in range(given.repeats):  # in turns, so that all see the same machine
                for place, (what, run) in product(("disk", "memory"), runs.items()):
                    if place == "disk":
                        forget(out)
                    rates.setdefault((what, place), []).append(megabytes / run())
        shape = {"codec": codec, "clips": clips, "seconds": seconds, "megabytes": round(megabytes), "workers": workers}
        for (what, place), found in rates.items():
            record("check", what, "MB/s", found, torch.device("cpu"), read_from=place, **shape)


if __name__ == "__main__":
    main()
