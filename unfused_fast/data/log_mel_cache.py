"""The log-mels of a split on disk, so that a second run reads them and not the audio.   N clips, F mel bins.

FOLDER/log-mel-SPLIT-KEY.cache/frames.npy      (frames of all clips, F) float16, clip after clip, shard after shard
FOLDER/log-mel-SPLIT-KEY.cache/index.npy       (N, 2) int64: first frame and number of frames of the split's i-th clip
FOLDER/log-mel-SPLIT-KEY.cache/manifest.json   what it was made of, and sha256 of its parts; its name's KEY is of these
FOLDER/log-mel-SPLIT-KEY.cache.partial         one being made; it is locked, and never read

FOLDER is that of the shard set, or UNFUSED_CACHE, or ~/.cache/unfused-fast where the set may not be written to. A cache
may be deleted when no run reads it. Values are normalised by the set's own mean and standard deviation: float16 then
errs by 2e-4 of that deviation (root mean square), and by 3e-4 on raw log-mels, most of which lie further from zero.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.console import console
from unfused_fast.data.order import crop_samples
from unfused_fast.data.stream import Loader
from unfused_fast.json_files import LARGEST_JSON, read_json
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.remote_folder import cache_folder

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 25
"""Bytes under one sha256. Ours: 32 MiB, so that threads read and verify side by side in little memory."""
LARGEST_MANIFEST = 8 * LARGEST_JSON
"""Bytes above which a file is no manifest of ours. Ours: digests of 50 TB of log-mels."""
PASS_CLIPS, PASS_BYTES = 64, 1 << 28
"""Clips of a batch of the first pass, fewer where a padded batch would exceed 256 MiB. Ours: enough for DALI."""

Index = NDArray[np.int64]


class Layout(NamedTuple):
    """What a cache of a split holds, known before it is made."""

    identity: dict[str, Any]
    """What must be equal for a cache to be used."""
    spans: Index
    """(N, 2): first frame and number of frames of each clip."""

    @property
    def shape(self) -> tuple[int, int]:
        """Frames of all clips, F."""
        return int(self.identity["frames"]), int(self.identity["frontend"]["n_mels"])

    @property
    def bytes(self) -> int:
        """Of the frames of all clips."""
        return 2 * self.shape[0] * self.shape[1]

    @property
    def name(self) -> str:
        """Name of the cache's folder."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"log-mel-{self.identity['split']}-{key}.cache"


class DamagedCache(Exception):
    """A cache is not what it was when it was written, or not what is wanted; the text says how."""


def whole_split(loader: Loader) -> Loader:
    """A loader of the same split in one share, normalised by the set's own statistics: what a cache is made with. Where
    waveforms are scaled, it is so too.
    """
    unit_norm = loader.config.data.norm == "wave_l2"
    config = replace(loader.config, data=replace(loader.config.data, norm="wave_l2" if unit_norm else "dataset"))
    rows = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    frames = 1 + int(rows.max(initial=crop_samples(config))) // config.frontend.hop_samples
    batch_size = max(1, min(PASS_CLIPS, PASS_BYTES // (4 * frames * config.frontend.n_mels)))
    return Loader(
        loader.shards, loader.split, config, device=loader.device, batch_size=batch_size, skipped=loader.skipped
    )


def layout(loader: Loader) -> Layout:
    """Where each clip of the split will lie: in the order of Loader.whole_clips, a shard's clips together.

    Clips shorter than a crop are padded with silence, as in the stream, so their length enters where there are any.
    """
    whole, first = whole_split(loader), loader.shards.first_id(loader.split)
    config, shortest = whole.config, crop_samples(whole.config)
    samples = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    counts = 1 + np.maximum(samples, shortest) // config.frontend.hop_samples
    rows = whole.rows(None)[1] - first
    starts = np.empty_like(counts)
    starts[rows] = np.cumsum(counts[rows]) - counts[rows]
    identity = {
        "schema_version": SCHEMA_VERSION,
        "digest": loader.shards.manifest.digest,
        "split": loader.split,
        "frontend": asdict(config.frontend),
        "padded_to_samples": shortest if int(samples.min(initial=shortest)) < shortest else 0,
        "mean": whole.mean,
        "std": whole.std,
        "clips": len(counts),
        "frames": int(counts.sum()),
    }
    if config.data.norm == "wave_l2":  # named only where it is so, which leaves other caches their names
        identity["norm"] = "wave_l2"
    return Layout(identity, np.stack([starts, counts], axis=1).astype(np.int64))


def places(loader: Loader) -> list[Path]:
    """Folders that may hold caches of this set, the first choice first."""
    return [loader.shards.directory, cache_folder() / "log-mel"]


def find(loader: Loader, wanted: Layout) -> Path | None:
    """The folder of a cache that is whole as far as names and sizes tell; says why one that is there is not used."""
    for place in places(loader):
        folder = place / wanted.name
        if folder.is_dir():
            try:
                read_manifest(folder, wanted)
                return folder
            except DamagedCache as error:
                console.once(f"{folder}: {error}; it is not used", style="yellow")
    for other in sorted(loader.shards.directory.glob(f"log-mel-{loader.split}-*.cache")):
        if (why := _difference(other, wanted)) is not None and other.name != wanted.name:
            console.once(f"{other}: {why}; it is not used")
    return None


def load(folder: Path, wanted: Layout, target: Tensor | None) -> None:
    """Reads a cache into `target` (frames, F) float16 on any device, verifying it; None: only verifies.

    Raises DamagedCache for content that is not what was written.
    """
    manifest = read_manifest(folder, wanted)
    digests = manifest["sha256_of_chunks"]
    with (folder / "frames.npy").open("rb") as file:
        begin = _data_start(file)
        flat = None if target is None else target.view(-1)

        def chunk(number: int) -> bool:
            start = number * CHUNK_BYTES
            values = min(CHUNK_BYTES, wanted.bytes - start) // 2
            there = None if flat is None else flat[start // 2 : start // 2 + values]
            on_cpu = there is not None and there.device.type == "cpu"
            here = there if there is not None and on_cpu else torch.empty(values, dtype=torch.float16)
            read = memoryview(here.numpy().data).cast("B")
            done = 0
            while done < len(read) and (count := os.preadv(file.fileno(), [read[done:]], begin + start + done)):
                done += count
            if there is not None and not on_cpu:
                there.copy_(here)
            return bool(hashlib.sha256(read).hexdigest() == digests[number])

        with ThreadPoolExecutor(min(available_cores(), 8)) as pool:
            sound = list(pool.map(chunk, range(len(digests))))
    if not all(sound):
        raise DamagedCache(f"damaged: {sound.count(False)} of {len(sound)} parts are not what was written")


def mapped(folder: Path) -> Tensor:
    """(frames, F) float16 that lies on disk: a private mapping of frames.npy."""
    return torch.from_numpy(np.load(folder / "frames.npy", mmap_mode="c"))


def read_manifest(folder: Path, wanted: Layout) -> dict[str, Any]:
    """manifest.json of a cache. Raises DamagedCache: another one than wanted, or files are missing or cut."""
    if (why := _difference(folder, wanted)) is not None:
        raise DamagedCache(why)
    manifest: dict[str, Any] = read_json(folder / "manifest.json", LARGEST_MANIFEST)
    try:
        index = np.load(folder / "index.npy", mmap_mode="r")  # a file shorter than its header says takes no memory
        with (folder / "frames.npy").open("rb") as file:
            if (header := _header(file)) != (wanted.shape, False, np.dtype(np.float16)):
                raise ValueError(f"the header of frames.npy says {str(header)[:80]}")
            missing = file.tell() + wanted.bytes - os.fstat(file.fileno()).st_size
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DamagedCache(f"damaged: {str(error)[:200]}") from error
    if missing:
        raise DamagedCache(f"frames.npy is {abs(missing)} bytes {'short' if missing > 0 else 'too long'}")
    if not np.array_equal(index, wanted.spans):
        raise DamagedCache("damaged: index.npy is not what was written")
    digests = manifest.get("sha256_of_chunks")
    if not isinstance(digests, list) or len(digests) != -(-wanted.bytes // CHUNK_BYTES):
        raise DamagedCache("damaged: manifest.json does not have the digests of all parts")
    return manifest


def is_whole(folder: Path, wanted: Layout) -> bool:
    try:
        return bool(read_manifest(folder, wanted))
    except DamagedCache:
        return False


def _difference(folder: Path, wanted: Layout) -> str | None:
    """In which respect a cache was made of something else; None: in none."""
    try:
        manifest = read_json(folder / "manifest.json", LARGEST_MANIFEST)
        found = manifest["identity"]
        for name, value in wanted.identity.items():
            if isinstance(value, dict):
                other = found[name]
                for inner in value:
                    if other.get(inner) != value[inner]:
                        return f"made with {name}.{inner} = {other.get(inner)}, now {value[inner]}"
            if found[name] != value:
                return f"made with {name} = {found[name]}, now {value}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"damaged: manifest.json cannot be read ({error})"
    return None


def _header(file: BinaryIO) -> tuple[Any, ...]:
    """Shape, order and type of an array on disk; the file is then at its data."""
    file.seek(0)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def _data_start(file: BinaryIO) -> int:
    _header(file)
    return file.tell()
