"""The log-mels of a split on disk, so that a second run reads them and not the audio.   N clips, F mel bins.

FOLDER/log-mel-SPLIT-KEY.cache/frames.npy      (frames of all clips, F) float16, clip after clip, shard after shard
FOLDER/log-mel-SPLIT-KEY.cache/index.npy       (N, 2) int64: first frame and number of frames of the split's i-th clip
FOLDER/log-mel-SPLIT-KEY.cache/manifest.json   what it was made of, and sha256 of its parts; its name's KEY is of these
FOLDER/log-mel-SPLIT-KEY.cache.partial         one being made; it is locked, and never read

FOLDER is that of the shard set, or UNFUSED_CACHE, or ~/.cache/unfused-fast where the set may not be written to. A cache
may be deleted when no run reads it. Values are normalised by the set's own mean and standard deviation: float16 then
errs by 2e-4 of that deviation (root mean square), an eighth of what it does on raw log-mels, which lie far from zero.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.console import console, progress_bar
from unfused_fast.errors import UserError
from unfused_fast.order import crop_samples
from unfused_fast.pipeline import Loader
from unfused_fast.shards.remote_sets import cache_folder
from unfused_fast.shards.workers import available_cores

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 25
"""Bytes under one sha256. Ours: 32 MiB, so that threads read and verify side by side in little memory."""
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
    """A loader of the same split in one share, normalised by the set's own statistics: what a cache is made with."""
    config = replace(loader.config, data=replace(loader.config.data, norm="dataset"))
    rows = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    frames = 1 + int(rows.max(initial=crop_samples(config))) // config.frontend.hop_samples
    batch_size = max(1, min(PASS_CLIPS, PASS_BYTES // (4 * frames * config.frontend.n_mels)))
    return Loader(loader.shards, loader.split, config, device=loader.device, batch_size=batch_size)


def layout(loader: Loader) -> Layout:
    """Where each clip of the split will lie: in the order of Loader.whole_clips, a shard's clips together.

    Clips shorter than a crop are padded with silence, as in the stream, so their length enters where there are any.
    """
    whole, first = whole_split(loader), loader.shards.first_id(loader.split)
    config, shortest = whole.config, crop_samples(whole.config)
    samples = loader.shards.clips_in(loader.split).column("samples").to_numpy()
    counts = 1 + np.maximum(samples, shortest) // config.frontend.hop_samples
    rows = np.array([line.clip_id for _, lines in whole.order(None) for line in lines], dtype=np.int64) - first
    starts = np.empty_like(counts)
    starts[rows] = np.cumsum(counts[rows]) - counts[rows]
    identity = {
        "schema_version": SCHEMA_VERSION,
        "digest": loader.shards.manifest.digest,
        "split": loader.split,
        "clips": len(counts),
        "frames": int(counts.sum()),
        "frontend": asdict(config.frontend),
        "padded_to_samples": shortest if int(samples.min(initial=shortest)) < shortest else 0,
        "mean": whole.mean,
        "std": whole.std,
    }
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
                console.print(f"{folder}: {error}; it is made again", style="yellow")
    for other in sorted(loader.shards.directory.glob(f"log-mel-{loader.split}-*.cache")):
        if (why := _difference(other, wanted)) is not None and other.name != wanted.name:
            console.print(f"{other}: {why}; another is made, and this one may be deleted")
    return None


def writable_place(loader: Loader, size: int) -> Path | None:
    """The first place with room for `size` bytes; says why it is not the shard set's own folder."""
    for number, place in enumerate(places(loader)):
        try:
            if number:
                place.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(place).free
        except OSError as error:
            console.print(f"{place}: cannot hold the log-mels ({error.strerror})", style="yellow")
            continue
        if not os.access(place, os.W_OK | os.X_OK):
            console.print(f"{place}: may not be written to, so the log-mels are kept elsewhere", style="yellow")
        elif free < size + CHUNK_BYTES:
            console.print(f"{place}: {free / 1e9:.2f} GB free, the log-mels take {size / 1e9:.2f} GB", style="yellow")
        else:
            return place
    return None


def make(loader: Loader, wanted: Layout, place: Path) -> Path:
    """Computes the log-mels in one pass and publishes them as a whole; waits where another process is at it.

    Raises UserError when it cannot be written. Whatever stops it, nothing is left that is taken for a cache.
    """
    folder = place / wanted.name
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        while True:
            with _locked(partial) as mine:
                if folder.is_dir() and _is_whole(folder, wanted):
                    if mine:
                        partial.rmdir()
                    return folder
                if mine:
                    _write(loader, wanted, partial)
                    shutil.rmtree(folder, ignore_errors=True)
                    partial.rename(folder)
                    _sync(place)
                    return folder
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, set UNFUSED_CACHE to a folder on "
            "another disk, or use --data stream"
        ) from error


def computed(loader: Loader, wanted: Layout) -> Iterator[Tensor]:
    """(frames of a batch, F) float16 on the CPU, batch after batch in the order of the layout; shows a bar."""
    whole, frames = whole_split(loader), 0
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


def load(folder: Path, wanted: Layout, target: Tensor | None) -> Index:
    """Reads a cache into `target` (frames, F) float16 on any device, verifying it; None: only verifies. -> (N, 2)

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
    return wanted.spans


def mapped(folder: Path) -> Tensor:
    """(frames, F) float16 that lies on disk: a private mapping of frames.npy."""
    return torch.from_numpy(np.load(folder / "frames.npy", mmap_mode="c"))


def read_manifest(folder: Path, wanted: Layout) -> dict[str, Any]:
    """manifest.json of a cache. Raises DamagedCache: another one than wanted, or files are missing or cut."""
    if (why := _difference(folder, wanted)) is not None:
        raise DamagedCache(why)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    try:
        index = np.load(folder / "index.npy")
        with (folder / "frames.npy").open("rb") as file:
            missing = _data_start(file) + wanted.bytes - os.fstat(file.fileno()).st_size
    except (OSError, ValueError, EOFError) as error:
        raise DamagedCache(f"damaged: {error}") from error
    if missing:
        raise DamagedCache(f"frames.npy is {abs(missing)} bytes {'short' if missing > 0 else 'too long'}")
    if not np.array_equal(index, wanted.spans):
        raise DamagedCache("damaged: index.npy is not what was written")
    if len(manifest.get("sha256_of_chunks", ())) != -(-wanted.bytes // CHUNK_BYTES):
        raise DamagedCache("damaged: manifest.json does not have the digests of all parts")
    return manifest


def _is_whole(folder: Path, wanted: Layout) -> bool:
    try:
        return bool(read_manifest(folder, wanted))
    except DamagedCache:
        return False


def _difference(folder: Path, wanted: Layout) -> str | None:
    """In which respect a cache was made of something else; None: in none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
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


def _write(loader: Loader, wanted: Layout, partial: Path) -> None:
    for left in partial.iterdir():
        left.unlink()
    try:
        np.save(partial / "index.npy", wanted.spans)
        with (partial / "frames.npy").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": wanted.shape}
            np.lib.format.write_array_header_1_0(file, header)
            digests, digest, room = list[str](), hashlib.sha256(), CHUNK_BYTES
            for rows in computed(loader, wanted):
                data = memoryview(rows.numpy().data).cast("B")
                file.write(data)
                while data:
                    digest.update(data[:room])
                    data, room = data[room:], max(0, room - len(data))
                    if not room:
                        digests.append(digest.hexdigest())
                        digest, room = hashlib.sha256(), CHUNK_BYTES
            if room < CHUNK_BYTES:
                digests.append(digest.hexdigest())
        manifest = {"identity": wanted.identity, "bytes": wanted.bytes, "sha256_of_chunks": digests}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for name in ("index.npy", "frames.npy", "manifest.json", "."):
            _sync(partial / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _locked(partial: Path) -> Iterator[bool]:
    """Makes the folder and locks it; False where whoever held the lock has meanwhile renamed or removed it."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:  # removed between the two
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{partial.parent}: waiting for another process that computes the same log-mels")
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            mine = os.path.samestat(os.fstat(handle), partial.stat())
        except FileNotFoundError:
            mine = False
        yield mine
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _data_start(file: BinaryIO) -> int:
    file.seek(0)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()
