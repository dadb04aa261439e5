"""The log-mels of a split on disk, so that a second run reads them and not the audio.   N clips, F mel bins.

FOLDER/log-mel-SPLIT-KEY.cache/frames.npy      (frames of all clips, F) float16, clip after clip, shard after shard
FOLDER/log-mel-SPLIT-KEY.cache/manifest.json   what it was computed from (its digest is KEY), and sha256 of parts
FOLDER/log-mel-SPLIT-KEY.cache.partial         an unfinished one; it is never read
FOLDER/log-mel-SPLIT-KEY.lock                  is locked while it is being made

FOLDER is that of the shard set, or UNFUSED_CACHE, or ~/.cache/unfused-fast where the set is read-only. A cache
may be deleted when no run reads it. Values are normalised by the set's own mean and standard deviation: float16 then
errs by 2e-4 of that deviation (root mean square), and by 3e-4 on raw log-mels, most of which are further from zero.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from unfused_fast.console import console, progress_bar
from unfused_fast.data.crops import crop_samples
from unfused_fast.data.order import Int64s
from unfused_fast.data.stream import Batches, Loader
from unfused_fast.errors import UserError, cause
from unfused_fast.json_files import LARGEST_JSON, read_json
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.remote_folder import cache_folder

SCHEMA_VERSION = 2
CHUNK_BYTES = 1 << 25
"""Bytes under one sha256. Ours: 32 MiB, so that threads read and verify side by side in little memory."""
LARGEST_MANIFEST = 8 * LARGEST_JSON
"""Bytes above which a file is no manifest of ours. Ours: digests of 50 TB of log-mels."""
PASS_CLIPS, PASS_BYTES = 64, 1 << 28
"""Clips of a batch of the first pass, fewer where a padded batch would exceed 256 MiB. Ours: enough for DALI."""


class Layout(NamedTuple):
    """What a cache of a split holds, known before it is made."""

    identity: dict[str, Any]
    """What must be equal for a cache to be used."""
    starts: Int64s
    """(N,) first frame of each clip of the split, and"""
    counts: Int64s
    """(N,) its frames; 0 where it is left out."""

    @property
    def shape(self) -> tuple[int, int]:
        """Frames of all clips, F."""
        return int(self.counts.sum()), int(self.identity["frontend.n_mels"])

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
    """A cache that was changed since it was written, or that belongs to other data."""


def whole_split(loader: Batches) -> Loader:
    """A loader of the whole split for one rank, normalised by the set's own statistics, from which a cache is computed.
    It scales waveforms as the given loader does.
    """
    unit_norm = loader.config.data.norm == "wave_l2"
    config = replace(loader.config, data=replace(loader.config.data, norm="wave_l2" if unit_norm else "dataset"))
    samples = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    frames = 1 + int(samples.max(initial=crop_samples(config))) // config.frontend.hop_samples
    size = max(1, min(PASS_CLIPS, PASS_BYTES // (4 * frames * config.frontend.n_mels)))
    left_out = loader.left_out
    return Loader(loader.shards, loader.split, config, device=loader.device, batch_size=size, left_out=left_out)


def layout(loader: Batches) -> Layout:
    """Where each clip of the split will be: in the order of Loader.whole_clips, a shard's clips together.

    Clips shorter than a crop are padded with silence, as in the stream, so the crop's length is part of the key where
    there are any.
    """
    whole, first = whole_split(loader), loader.shards.first_id(loader.split)
    config, shortest = whole.config, crop_samples(whole.config)
    samples = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    rows = whole.reading(None).clip_ids - first
    counts = np.zeros(len(samples), np.int64)
    counts[rows] = 1 + np.maximum(samples[rows], shortest) // config.frontend.hop_samples
    starts = np.zeros_like(counts)
    starts[rows] = np.cumsum(counts[rows]) - counts[rows]
    identity = {
        "schema_version": SCHEMA_VERSION,
        "digest": loader.shards.manifest.digest,
        "split": loader.split,
        **{f"frontend.{name}": value for name, value in asdict(config.frontend).items()},
        "padded_to_samples": shortest if int(samples.min(initial=shortest)) < shortest else 0,
        "mean": whole.mean,
        "std": whole.std,
        "norm": config.data.norm,
        "left_out": whole.left_out,
    }
    return Layout(identity, starts, counts)


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
    path = folder / "frames.npy"
    try:
        manifest = read_json(folder / "manifest.json", LARGEST_MANIFEST)
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
    """Reads a cache into `target` (frames, F) float16 on any device, verifying it; None: only verifies it, and maps it.

    Raises DamagedCache where the content differs from what was written.
    """
    frames, digests = _open(folder, wanted)
    found = _read(folder / "frames.npy", frames.offset, wanted.bytes, target)
    if different := sum(one != other for one, other in zip(found, digests, strict=True)):
        raise DamagedCache(f"damaged: {different} of {len(digests)} parts are not what was written")
    return torch.from_numpy(frames) if target is None else target


def _read(path: Path, begin: int, size: int, target: Tensor | None) -> list[str]:
    """Reads `size` bytes from `begin` on into a tensor, if there is one; returns the sha256 of their parts."""
    flat = None if target is None else target.view(-1)
    on_cpu = target is not None and target.device.type == "cpu"
    with path.open("rb") as file, ThreadPoolExecutor(min(available_cores(), 8)) as pool:

        def part(start: int) -> str:
            values = slice(start // 2, min(start + CHUNK_BYTES, size) // 2)
            space = torch.empty(0 if on_cpu else values.stop - values.start, dtype=torch.float16)
            here = flat[values] if flat is not None and on_cpu else space
            read, done = memoryview(here.numpy().data).cast("B"), 0
            while done < len(read) and (count := os.preadv(file.fileno(), [read[done:]], begin + start + done)):
                done += count
            if flat is not None and not on_cpu:
                flat[values].copy_(here)
            return hashlib.sha256(read).hexdigest()

        return list(pool.map(part, range(0, size, CHUNK_BYTES)))


def writable_place(loader: Batches, wanted: Layout) -> Path | None:
    """The first folder with room for the log-mels; reports why it is not the shard set's own.

    Files of a killed or another process, and damaged ones, count as free space: they are deleted, or the process is
    waited for.
    """
    for place in places(loader):
        try:
            place.mkdir(parents=True, exist_ok=True)
            own = sum(file.stat().st_blocks * 512 for file in place.glob(f"{wanted.name}*/*"))
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


def make(loader: Batches, wanted: Layout, place: Path, damaged: bool = False) -> Path:
    """Computes the log-mels in one pass and publishes them as a whole; waits while another process does it.

    Raises UserError when it cannot be written. An interrupted pass never leaves anything that could be read as a cache.

    Args:
        damaged: a cache that is there was found to be damaged.
    """
    folder = place / wanted.name
    partial, lock = folder.with_name(f"{folder.name}.partial"), FileLock(folder.with_suffix(".lock"))
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            console.print(f"{place}: waiting for another process that computes the same log-mels")
            lock.acquire()
        try:
            if not _is_sound(folder, wanted, damaged):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                _write(loader, wanted, partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            return folder
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({cause(error)}); make room, set UNFUSED_CACHE to a folder on another disk, "
            "or use --data stream"
        ) from error


def _is_sound(folder: Path, wanted: Layout, damaged: bool) -> bool:
    """Whether the cache is there and whole. Reads it where one was found to be damaged, which another process may have
    replaced since; any other was published by such a process while this one waited.
    """
    try:
        if damaged and folder.is_dir():
            load(folder, wanted, None)
    except DamagedCache:
        return False
    return folder.is_dir()


def computed(loader: Batches, wanted: Layout) -> Iterator[Tensor]:
    """(frames of a batch, F) float16 on the CPU, batch after batch in the order of the layout; shows a bar."""
    whole, frames = whole_split(loader), 0
    console.print(f"data: first pass over {loader.split}: log-mels of {whole.clips} clips, computed once")
    with progress_bar() as progress:
        task = progress.add_task(f"log-mels of {loader.split}", total=whole.clips, note="")
        for batch in whole.whole_clips():
            assert batch.frame_counts is not None
            values = batch.views[0][:, 0].transpose(1, 2)
            valid = torch.arange(values.shape[1], device=values.device) < batch.frame_counts[:, None]
            rows = values[valid].to(torch.float16).cpu()
            frames += len(rows)
            yield rows
            progress.advance(task, len(batch.clip_ids))
    if frames != wanted.shape[0]:
        raise RuntimeError(f"{loader.shards.directory}: {frames} frames, but the clips table makes {wanted.shape[0]}")


def _write(loader: Batches, wanted: Layout, folder: Path) -> None:
    path = folder / "frames.npy"
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": wanted.shape}
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        for rows in computed(loader, wanted):
            file.write(memoryview(rows.numpy().data).cast("B"))
    digests = _read(path, begin, wanted.bytes, None)
    manifest = {"identity": wanted.identity, "sha256_of_chunks": digests}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
