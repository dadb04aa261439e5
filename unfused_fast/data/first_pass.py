"""The first pass over a split: log-mels of all its clips, computed once and put into the cache (log_mel_cache.py).

F mel bins. Of several ranks each computes those of its own clips and writes them to their place in the file, in which
rank 0 made room for all: a rank writes no byte that another one writes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from unfused_fast.console import console, progress_bar
from unfused_fast.data.log_mel_cache import FRAMES, MANIFEST, DamagedCache, Layout, digests, load, whole_split
from unfused_fast.data.stream import Batches
from unfused_fast.distributed import ALONE, Ranks, Share, in_words
from unfused_fast.errors import UserError, cause

Result = TypeVar("Result")

TOKEN = "token"
"""File of an unfinished cache by which ranks know that they see the same folder."""


def make(loader: Batches, wanted: Layout, place: Path, ranks: Ranks = ALONE, damaged: bool = False) -> Path | None:
    """Computes the log-mels in one pass and publishes them as a whole; waits while another process does it.

    Several ranks do it together, in the `place` of rank 0; where one of them does not see that folder the result is
    None, and nothing is made. An interrupted pass never leaves anything that could be read as a cache.

    Args:
        damaged: a cache that is there was found to be damaged.

    Raises UserError, on all of the ranks: it cannot be written, or clips cannot be read.
    """
    folder = Path(ranks.first(lambda: str(place / wanted.name)))
    partial, lock = folder.with_name(f"{folder.name}.partial"), FileLock(folder.with_suffix(".lock"))
    path = partial / FRAMES

    def begin() -> dict[str, Any]:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            console.print(f"{folder.parent}: waiting for another process that computes the same log-mels")
            lock.acquire()
        if _is_sound(folder, wanted, damaged):
            return {"token": ""}
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / TOKEN).write_text(token := secrets.token_hex(), encoding="ascii")
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": wanted.shape})
            data = file.tell()
            file.truncate(data + wanted.bytes)
        return {"token": token, "data": data}

    def write(data: int) -> None:
        # not to be read too: then a client of NFS writes whole pages, and with them old bytes of another rank's
        with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0)), "wb") as file:
            for start, rows in computed(loader, wanted, ranks.share, in_words(ranks)):
                file.seek(data + start * wanted.frame_bytes)
                file.write(memoryview(rows.numpy().data).cast("B"))

    def publish(parts: list[str]) -> None:
        manifest = {
            "identity": wanted.identity,
            "sha256_of_chunks": [one for part in parts for one in json.loads(part)],
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        (partial / TOKEN).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    try:
        begun = ranks.first(_written(folder, begin))
        if begun["token"]:
            if any(ranks.any_rank(not _sees(partial, begun["token"]))):
                return None
            data = begun["data"]
            ranks.every(_written(folder, lambda: write(data)))
            found = ranks.every(_written(folder, lambda: digests(path, data, wanted.bytes, ranks.share)))
            parts = ranks.texts(json.dumps(found))
            ranks.first(_written(folder, lambda: publish(parts)))
        return folder
    finally:
        if lock.is_locked:  # on rank 0
            shutil.rmtree(partial, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _written(folder: Path, work: Callable[[], Result]) -> Callable[[], Result]:
    """The work, of which an error of the system says what to do."""

    def checked() -> Result:
        try:
            return work()
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({cause(error)}); make room, set UNFUSED_CACHE to a folder on another "
                "disk, or use --data stream"
            ) from error

    return checked


def _sees(partial: Path, token: str) -> bool:
    """Whether the folder that rank 0 made is here too, and not another of its name."""
    try:
        return (partial / TOKEN).read_text(encoding="ascii") == token
    except OSError:
        return False


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


def computed(loader: Batches, wanted: Layout, share: Share, on_ranks: str = "") -> Iterator[tuple[int, Tensor]]:
    """Of each clip of a share of the split its first frame in the layout and its frames (frames, F), float16 on the
    CPU; shows a bar. `on_ranks`, for the first line, as of in_words.
    """
    whole, first = whole_split(loader, share), loader.shards.first_id(loader.split)
    console.print(f"data: first pass over {loader.split}: log-mels of {whole.clips} clips, computed once{on_ranks}")
    with progress_bar() as progress:
        task = progress.add_task(f"log-mels of {loader.split}", total=len(whole.index.lines), note="")
        for batch in whole.whole_clips():
            assert batch.frame_counts is not None
            values, clips = batch.views[0][:, 0].to(torch.float16).cpu(), batch.clip_ids.cpu().numpy() - first
            counts = wanted.counts[clips].tolist()
            if batch.frame_counts.tolist() != counts:
                raise RuntimeError(f"{loader.shards.directory}: not as many frames as the clips table makes")
            rows = (clip[:, :count].T.contiguous() for clip, count in zip(values, counts, strict=True))
            yield from zip(wanted.starts[clips].tolist(), rows, strict=True)
            progress.advance(task, len(clips))
