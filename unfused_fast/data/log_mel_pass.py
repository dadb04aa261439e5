"""The first pass over a split: its log-mels, computed once, written as a cache that is whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfused_fast.console import console, progress_bar
from unfused_fast.data.log_mel_cache import CHUNK_BYTES, Layout, is_whole, places, whole_split
from unfused_fast.data.stream import Loader
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.building import to_disk


def writable_place(loader: Loader, wanted: Layout) -> Path | None:
    """The first place with room for the log-mels; says why it is not the shard set's own folder.

    What a killed or another process has written of them so far, or what is damaged, counts as room: it is deleted or
    waited for.
    """
    size = wanted.bytes
    for number, place in enumerate(places(loader)):
        try:
            if number:
                place.mkdir(parents=True, exist_ok=True)
            own = [file for name in (wanted.name, f"{wanted.name}.partial") for file in (place / name).glob("*")]
            free = shutil.disk_usage(place).free + sum(file.stat().st_blocks * 512 for file in own)
        except OSError as error:
            console.once(f"{place}: cannot hold the log-mels ({error.strerror})", style="yellow")
            continue
        if not os.access(place, os.W_OK | os.X_OK):
            console.once(f"{place}: may not be written to, so the log-mels are kept elsewhere", style="yellow")
        elif free < size + CHUNK_BYTES:
            console.once(
                f"{place}: {free / 1e9:.2f} GB free, the log-mels take {size / 1e9:.2f} GB",
                about=("full", place, wanted.name),
                style="yellow",
            )
        else:
            return place
    return None


def make(loader: Loader, wanted: Layout, place: Path, take: Callable[[Path], Tensor]) -> Path | Tensor:
    """Computes the log-mels in one pass and publishes them as a whole; waits where another process is at it.

    Where clips count as silence nothing is published, so that no later run trains on it unknowingly: what `take` gives
    of the folder, which is then deleted, is returned.

    Raises UserError when it cannot be written. Whatever stops it, nothing is left that is taken for a cache.
    """
    folder = place / wanted.name
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        while True:
            with _locked(partial) as mine:
                if folder.is_dir() and is_whole(folder, wanted):
                    if mine:
                        partial.rmdir()
                    return folder
                if mine:
                    if folder.is_dir():
                        console.print(f"{folder}: it is made again", style="yellow")
                    _write(loader, wanted, partial)
                    if silent := int(loader.skipped.among(loader.clip_ids).sum()):
                        console.print(
                            f"data: {silent} clips of {loader.split} count as silence, so its log-mels are held for "
                            "this run and not kept",
                            style="yellow",
                        )
                        try:
                            return take(partial)
                        finally:
                            shutil.rmtree(partial, ignore_errors=True)
                    shutil.rmtree(folder, ignore_errors=True)
                    partial.rename(folder)
                    to_disk(place)
                    return folder
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, set UNFUSED_CACHE to a folder on "
            "another disk, or use --data stream"
        ) from error


def computed(loader: Loader, wanted: Layout) -> Iterator[Tensor]:
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
            to_disk(partial / name)
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
        except OSError:
            console.print(
                f"{partial.parent}: this file system has no locks, so two processes may compute the same log-mels",
                style="yellow",
            )
        try:
            mine = os.path.samestat(os.fstat(handle), partial.stat())
        except FileNotFoundError:
            mine = False
        yield mine
    finally:
        os.close(handle)
