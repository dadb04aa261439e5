"""Where a split's log-mels are stored while a stage trains on them: `data.store`, and the choice of `auto`."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from unfused_fast.config import Store
from unfused_fast.console import console, counted
from unfused_fast.data import first_pass, log_mel_cache
from unfused_fast.data.crops import crop_samples
from unfused_fast.data.dali import import_dali
from unfused_fast.data.log_mel_cache import DamagedCache, Layout
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.stream import Batches, Loader
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError
from unfused_fast.memory import Free, free_memory

MEMORY_SHARE = 0.75
"""Share of the free memory, of the device or of the host, that `auto` gives to log-mels, or less where a step needs
more than the rest. Ours: the rest is for temporary results and the page cache."""

FASTEST: tuple[Store, ...] = "resident", "pinned", "mmap", "stream"
"""What `auto` chooses from, the fastest first."""


def choose(
    size: int, device: torch.device, free: Free, room_on_disk: bool | None, ranks: int = 1, step: int = 0
) -> tuple[Store, str]:
    """The choice of `auto` for `size` bytes on each of so many ranks, and why: the fastest store in which they fit.

    Args:
        free: for this rank.
        room_on_disk: for those of all ranks; None: unknown.
        step: bytes that training will take on the device.
    """
    cuda = device.type == "cuda"
    on_gpu, each = f"{gigabytes(free.device)} on the GPU and " if cuda else "", " a process" if ranks > 1 else ""
    reason = (
        f"the log-mels take {gigabytes(size)}{each}; {on_gpu}{gigabytes(free.host)} in memory are free, of which "
        f"{100 * MEMORY_SHARE:.0f} % may be used"
    )
    reason += f", and a step takes about {gigabytes(step)}" if step else ""
    if cuda and size <= min(MEMORY_SHARE * free.device, free.device - step):
        return "resident", reason
    if size <= min(MEMORY_SHARE * free.host, free.host - (0 if cuda else step)):
        return ("pinned" if cuda else "resident"), reason
    if room_on_disk is None:
        return "mmap", f"{reason}; if the disk has room for {gigabytes(size * ranks)}"
    return ("mmap", f"{reason}; the disk has room") if room_on_disk else ("stream", f"{reason}; the disk has no room")


def placed(
    loader: Loader,
    wanted: Store | None = None,
    *,
    single_pass: bool = False,
    crops: bool = False,
    ranks: Ranks = ALONE,
    step: int = 0,
) -> Batches:
    """The loader itself, or its batches from memory, by `wanted`, else by `data.store` of its config; reports which.

    The first time the split is decoded and computed in one pass, and stored next to the shards (first_pass.py): `ranks`
    that share the folder do it together, else one process of each machine does it, and the others wait. Ours: for a
    `single_pass` over the split `auto` uses an existing cache but makes none, which would cost more. Each rank holds
    the log-mels of its own clips, in its part of the machine's memory; `auto` is the fastest store in which those of
    each rank fit. `step` is as of choose. With `crops` the batches will be of crops, which only DALI can stream.

    Raises UserError, on all ranks: memory or disk that was asked for and is too small, or clips that cannot be read; or
    crops would be streamed without DALI.
    """
    begin, device = time.perf_counter(), loader.device
    store: Store = wanted or loader.config.data.store
    _report_padded(loader)
    if store == "stream" or not loader.clips:
        return _streamed(loader, crops, ranks)
    if store == "pinned" and device.type != "cuda":
        raise UserError(
            f"data.store = pinned: pinned memory feeds a GPU, but this run is on {device}; use --data resident, mmap "
            "or stream"
        )
    layout, free = log_mel_cache.layout(loader), free_memory(device)
    free = free._replace(host=free.host // ranks.local_size)
    most = max(map(int, ranks.texts(str(layout.own_bytes))))
    may_make = not (single_pass and store == "auto")
    found = log_mel_cache.find(loader, layout)
    place = log_mel_cache.writable_place(loader, layout) if found is None and may_make else None
    if store == "auto":
        has_room = found is not None or place is not None
        store, why = choose(most, device, free, has_room, ranks.world_size, step)
        if found is None and not may_make:
            store, why = "stream", "it is read once, so no cache is made"
        every = [text.partition(" ") for text in ranks.texts(f"{store} {why}")]
        store, why = next((one, reason) for one in reversed(FASTEST) for name, _, reason in every if name == one)
        console.once(
            f"data.store: auto is {store} for {loader.split}: {why}",
            about=("store", loader.shards.directory, loader.split, store),
        )
        if store == "stream":
            return _streamed(loader, crops, ranks)
    ranks.every(lambda: _check_room(layout, store, device, free, found is not None or place is not None))
    made, (some,) = None, ranks.any_rank(found is not None)
    if ranks.together and not some and ranks.first(lambda: place is not None):
        made = first_pass.make(loader, layout, place or Path(), ranks)
    found = log_mel_cache.find(loader, layout) if made else found
    frames, source = ranks.every(lambda: _frames(loader, layout, store, found, place))
    source = source if made is None else f"from the audio ({made})"
    seconds = time.perf_counter() - begin
    part = f" ({gigabytes(most)} a process)" if ranks.together else ""
    sentence = f"data: {gigabytes(layout.bytes)} of log-mels of {loader.split}{part} ready in {seconds:.1f} s, {source}"
    if source.startswith("from the audio"):
        console.print(sentence)
    else:
        console.once(sentence, about=("ready", loader.shards.directory, layout.name, store))
    return ResidentLoader(loader, layout, frames, store, seconds)


def _streamed(loader: Loader, crops: bool, ranks: Ranks) -> Loader:
    if crops:
        ranks.every(import_dali)
    return loader


def _check_room(layout: Layout, store: Store, device: torch.device, free: Free, on_disk: bool) -> None:
    """Raises UserError where the log-mels do not fit into what was asked for."""
    if store == "mmap" and not on_disk:
        raise UserError(
            f"data.store = mmap: no folder has room for {gigabytes(layout.bytes)} of log-mels; make room, set "
            "UNFUSED_CACHE to a folder on another disk, or use --data stream"
        )
    on_gpu = store == "resident" and device.type == "cuda"
    room, needed = free.device if on_gpu else free.host, layout.own_bytes
    if store != "mmap" and needed > room:
        raise UserError(
            f"data.store = {store}: the log-mels take {gigabytes(needed)}, but {gigabytes(room)} are free "
            f"{f'on {device}' if on_gpu else 'in memory'}; use --data {'pinned, ' if on_gpu else ''}mmap or stream"
        )


def _report_padded(loader: Loader) -> None:
    shortest = crop_samples(loader.config)
    if short := int((loader.samples[loader.clip_ids] < shortest).sum()):
        console.once(
            f"data: shorter than a crop of {loader.config.data.crop_seconds:g} s, and padded with silence: {short} of "
            f"{counted(loader.clips, 'clip')} of {loader.split}",
            about=("padded", loader.shards.directory, loader.split, shortest),
        )


def gigabytes(size: int) -> str:
    """A size in GB or MB, as text."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _frames(loader: Loader, layout: Layout, store: Store, found: Path | None, place: Path | None) -> tuple[Tensor, str]:
    """This rank's log-mels in `store`, and their source: the cache, which is made where there is none or a damaged
    one.
    """
    target = None
    if store != "mmap":
        where = loader.device if store == "resident" else torch.device("cpu")
        target = torch.empty(layout.own_shape, dtype=torch.float16, device=where)
    if found is not None:
        try:
            return log_mel_cache.load(found, layout, target), f"from the cache ({found})"
        except DamagedCache as error:
            console.print(f"{found}: {error}; it is recomputed", style="yellow")
            place = log_mel_cache.writable_place(loader, layout)
    if place is not None:
        made = first_pass.make(loader, layout, place, damaged=found is not None)
        assert made is not None  # a single process sees the folder that it made
        try:
            return log_mel_cache.load(made, layout, target), f"from the audio ({made})"
        except DamagedCache as error:
            raise UserError(f"{made}: {error}, though just written; check the disk, or use --data stream") from error
    if target is None:
        raise UserError(f"{found}: damaged, and no folder has room for another; make room, or use --data stream")
    console.once("data: no folder can keep the log-mels, so every run computes them again", style="yellow")
    for start, rows in first_pass.computed(loader, layout, loader.share):
        target[start - layout.own.start :][: len(rows)] = rows.to(target.device)
    return target, "from the audio, not kept"
