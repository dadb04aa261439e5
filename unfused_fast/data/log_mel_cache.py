"""The log-mels of a split on disk, so that a second run reads them and not the audio.   N clips, F mel bins.

FOLDER/log-mel-SPLIT-KEY.cache/frames.npy      (frames of all clips, F) float16, in order of the clips table
FOLDER/log-mel-SPLIT-KEY.cache/manifest.json   what it was computed from (its digest is KEY), and sha256 of parts
FOLDER/log-mel-SPLIT-KEY.cache.partial         an unfinished one; it is never read
FOLDER/log-mel-SPLIT-KEY.lock                  is locked while it is being made

FOLDER is that of the shard set, or UNFUSED_CACHE, or ~/.cache/unfused-fast where the set is read-only. A cache
may be deleted when no run reads it. It is the same whatever the number of ranks, of which each
reads the frames of its own clips. Values are normalised by the set's own mean and standard deviation: float16 then errs
by 2e-4 of that deviation (root mean square), and by 3e-4 on raw log-mels, most of which are further from zero.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data.crops import crop_samples
from unfused_fast.data.front_end import scale, set_statistics
from unfused_fast.data.order import Int64s
from unfused_fast.data.stream import Batches, Loader
from unfused_fast.distributed import Share
from unfused_fast.errors import cause
from unfused_fast.json_files import LARGEST_JSON, read_json
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.remote_folder import cache_folder

SCHEMA_VERSION = 3
FRAMES, MANIFEST = "frames.npy", "manifest.json"
CHUNK_BYTES = 1 << 25
"""Bytes under one sha256. Ours: 32 MiB, so that threads read and verify side by side in little memory."""
LARGEST_MANIFEST = 8 * LARGEST_JSON
"""Bytes above which a file is no manifest of ours. Ours: digests of 50 TB of log-mels."""
PASS_CLIPS: Mapping[str, int] = {"cpu": 8, "cuda": 64}
PASS_BYTES = 1 << 28
"""Clips of a batch of the first pass, fewer where a padded batch would exceed 256 MiB. Ours: a batch is padded to its
longest clip, so on a CPU small ones are faster where lengths differ (1.4 times from 1 to 10 s), and no slower else; a
GPU is given enough to do."""


class Layout(NamedTuple):
    """What a cache of a split holds, known before it is made."""

    identity: dict[str, Any]
    """What must be equal for a cache to be used."""
    starts: Int64s
    """(N,) first frame of each clip of the split, and"""
    counts: Int64s
    """(N,) its frames; 0 where it is left out."""
    own: slice
    """The frames of this rank's clips."""

    @property
    def shape(self) -> tuple[int, int]:
        """Frames of all clips, F."""
        return int(self.counts.sum()), int(self.identity["frontend.n_mels"])

    @property
    def own_shape(self) -> tuple[int, int]:
        """Frames of this rank's clips, F."""
        return self.own.stop - self.own.start, self.shape[1]

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return 2 * int(self.identity["frontend.n_mels"])

    @property
    def bytes(self) -> int:
        """Of the frames of all clips."""
        return self.shape[0] * self.frame_bytes

    @property
    def own_bytes(self) -> int:
        """Of the frames of this rank's clips."""
        return self.own_shape[0] * self.frame_bytes

    @property
    def name(self) -> str:
        """Name of the cache's folder."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"log-mel-{self.identity['split']}-{key}.cache"


class DamagedCache(Exception):
    """A cache that was changed since it was written, or that belongs to other data."""


def _own_norm(config: Config) -> Config:
    """Log-mels are normalised by the set's own statistics, or waveforms scaled as the config says."""
    return replace(config, data=replace(config.data, norm="wave_l2" if config.data.norm == "wave_l2" else "dataset"))


def whole_split(loader: Batches, share: Share) -> Loader:
    """A loader of a share of the whole split, normalised by the set's own statistics, from which a cache is computed.
    It scales waveforms as the given loader does.
    """
    config = _own_norm(loader.config)
    samples = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    frames = 1 + int(samples.max(initial=crop_samples(config))) // config.frontend.hop_samples
    size = max(1, min(PASS_CLIPS[loader.device.type], PASS_BYTES // (4 * frames * config.frontend.n_mels)))
    return Loader(
        loader.shards,
        loader.split,
        config,
        device=loader.device,
        batch_size=size * share.world_size,
        share=share,
        threads=loader.threads,
        left_out=loader.left_out,
    )


def layout(loader: Batches) -> Layout:
    """Where each clip of the split will be.

    Clips shorter than a crop are padded with silence, as in the stream, so the crop's length is part of the key where
    there are any.
    """
    config, left_out = _own_norm(loader.config), loader.left_out
    samples, shortest = loader.shards.clips_in(loader.split).column("samples").to_numpy(), crop_samples(config)
    rows = np.setdiff1d(np.arange(len(samples)), np.array(left_out, np.int64) - loader.shards.first_id(loader.split))
    counts = np.zeros(len(samples), np.int64)
    counts[rows] = 1 + np.maximum(samples[rows], shortest) // config.frontend.hop_samples
    bounds, own = np.cumsum(np.r_[0, counts]), loader.share.of(len(counts))
    mean, std = scale(config, set_statistics(loader.shards, config.frontend))
    identity = {
        "schema_version": SCHEMA_VERSION,
        "digest": loader.shards.manifest.digest,
        "split": loader.split,
        **{f"frontend.{name}": value for name, value in asdict(config.frontend).items()},
        "padded_to_samples": shortest if int(samples.min(initial=shortest)) < shortest else 0,
        "mean": mean,
        "std": std,
        "norm": config.data.norm,
        "left_out": left_out,
    }
    return Layout(identity, bounds[:-1], counts, slice(int(bounds[own.start]), int(bounds[own.stop])))


def places(loader: Batches) -> list[Path]:
    """Folders that may hold caches of this set, in order of preference."""
    return [loader.shards.directory, cache_folder() / "log-mel"]


def find(loader: Batches, wanted: Layout) -> Path | None:
    """The folder of the cache, which may be damaged; None: there is none."""
    folders = (place / wanted.name for place in places(loader))
    return next((folder for folder in folders if folder.is_dir()), None)


def _open(folder: Path, wanted: Layout) -> tuple[np.memmap[Any, Any], list[str]]:
    """The frames of a cache, mapped, and the sha256 of its parts. Raises DamagedCache: it is not the wanted one, or
    files are missing or truncated.
    """
    path = folder / FRAMES
    try:
        manifest = read_json(folder / MANIFEST, LARGEST_MANIFEST)
        digests = list(manifest["sha256_of_chunks"])
        frames = np.load(path, mmap_mode="c")  # mapped, so that a truncated file takes no memory
        found = manifest["identity"], frames.shape, frames.dtype, frames.flags.c_contiguous, len(digests)
        size = path.stat().st_size - frames.offset
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, OverflowError) as error:
        raise DamagedCache(f"damaged: {str(error)[:200]}") from error
    parts = -(-wanted.bytes // CHUNK_BYTES)
    if (found, size) != ((wanted.identity, wanted.shape, np.float16, True, parts), wanted.bytes):
        raise DamagedCache("damaged: its files are not those of these log-mels")
    return frames, digests


def load(folder: Path, wanted: Layout, target: Tensor | None) -> Tensor:
    """Reads this rank's frames of a cache into `target` (frames, F) float16 on any device, verifying them; None: only
    verifies them, and maps them.

    Raises DamagedCache where the content differs from what was written.
    """
    frames, digests = _open(folder, wanted)
    own = slice(wanted.own.start * wanted.frame_bytes, wanted.own.stop * wanted.frame_bytes)
    found = _read(folder / FRAMES, frames.offset, wanted.bytes, own, target)
    if different := sum(digests[part] != digest for part, digest in found.items()):
        raise DamagedCache(f"damaged: {different} of {len(found)} parts are not what was written")
    return torch.from_numpy(frames[wanted.own]) if target is None else target


def _read(path: Path, begin: int, size: int, own: slice, target: Tensor | None = None) -> dict[int, str]:
    """Reads the bytes `own` of the `size` bytes from `begin` on into a tensor, if there is one; returns the sha256 of
    each part of CHUNK_BYTES that has any of them, by number.
    """
    flat = None if target is None else target.view(-1)
    on_cpu = target is not None and target.device.type == "cpu"

    def part(number: int) -> str:
        start, stop = number * CHUNK_BYTES, min((number + 1) * CHUNK_BYTES, size)
        first, last = max(start, own.start), min(stop, own.stop)
        goal = None if flat is None else flat[(first - own.start) // 2 : (last - own.start) // 2]
        direct = goal is not None and on_cpu and (first, last) == (start, stop)
        here = goal if goal is not None and direct else torch.empty((stop - start) // 2, dtype=torch.float16)
        read = memoryview(here.numpy().data).cast("B")
        with path.open("rb") as file:
            file.seek(begin + start)
            file.readinto(read)
        if goal is not None and not direct:
            goal.copy_(here[(first - start) // 2 : (last - start) // 2])
        return hashlib.sha256(read).hexdigest()

    numbers = range(own.start // CHUNK_BYTES, -(-own.stop // CHUNK_BYTES) if own.stop > own.start else 0)
    with ThreadPoolExecutor(min(available_cores(), 8)) as pool:
        return dict(zip(numbers, pool.map(part, numbers), strict=True))


def digests(path: Path, begin: int, size: int, share: Share) -> list[str]:
    """sha256 of a share of the parts of the `size` bytes of a file from `begin` on, which share follows share."""
    parts = share.of(-(-size // CHUNK_BYTES))
    own = slice(parts.start * CHUNK_BYTES, min(parts.stop * CHUNK_BYTES, size))
    return list(_read(path, begin, size, own).values())


def writable_place(loader: Batches, wanted: Layout) -> Path | None:
    """The first folder with room for the log-mels; reports why it is not the shard set's own.

    Files of a killed or another process, and damaged ones, count as free space: they are deleted, or the process is
    waited for.
    """
    for place in places(loader):
        try:
            place.mkdir(parents=True, exist_ok=True)
            states = [file.stat() for file in place.glob(f"{wanted.name}*/*")]
            own = sum(512 * state.st_blocks if hasattr(state, "st_blocks") else state.st_size for state in states)
            free = shutil.disk_usage(place).free + own
            reason = f"{free / 1e9:.2f} GB free, the log-mels take {wanted.bytes / 1e9:.2f} GB"
            if free >= wanted.bytes + CHUNK_BYTES:
                reason = "" if os.access(place, os.W_OK | os.X_OK) else "may not be written to"
        except OSError as error:
            reason = cause(error)
        if not reason:
            return place
        about = "no room", place, wanted.name
        console.once(f"{place}: cannot hold the log-mels ({reason})", about=about, style="yellow")
    return None
