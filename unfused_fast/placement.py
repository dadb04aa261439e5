"""Where a split's log-mels lie while a stage trains on them: `data.store`, and what its `auto` chooses."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from unfused_fast import log_mel_cache, log_mel_pass
from unfused_fast.config_audio import Store
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.log_mel_cache import DamagedCache, Index, Layout
from unfused_fast.pipeline import Batches, Loader
from unfused_fast.resident import HeldLogMels, ResidentLoader

MEMORY_SHARE = 0.75
"""Share of the free memory, of the device or of the host, that `auto` gives to log-mels. Ours: the rest is for the
network, its activations and the page cache; at the paper's settings a step takes about 7 GB."""


class Free(NamedTuple):
    """Bytes that are free."""

    device: int
    """On the GPU; 0 without one."""
    host: int
    """In memory, without swapping, within the limits of this process's control group."""


def free_memory(device: torch.device) -> Free:
    """What is free now."""
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return Free(on_device, min(_available(), _group_room()))


def choose(size: int, device: torch.device, free: Free, room_on_disk: bool) -> tuple[Store, str]:
    """What `auto` takes for `size` bytes, and why: the fastest place in which they fit."""
    on_gpu = f"{gigabytes(free.device)} on the GPU and " if device.type == "cuda" else ""
    said = (
        f"the log-mels take {gigabytes(size)}; {on_gpu}{gigabytes(free.host)} in memory are free, of which "
        f"{100 * MEMORY_SHARE:.0f} % may be taken"
    )
    if device.type == "cuda" and size <= MEMORY_SHARE * free.device:
        return "resident", said
    if size <= MEMORY_SHARE * free.host:
        return ("pinned" if device.type == "cuda" else "resident"), said
    return ("mmap", f"{said}; on disk there is room") if room_on_disk else ("stream", f"{said}; nor is there on disk")


def placed(loader: Loader, wanted: Store | None = None) -> Batches:
    """The loader itself, or its batches out of memory, by `wanted`, else by `data.store` of its config; says which.

    The first time the split is decoded and computed in one pass, and kept beside the shards (log_mel_cache.py).

    Raises UserError: memory or disk that is named and does not do.
    """
    begin, device = time.perf_counter(), loader.device
    store: Store = wanted or loader.config.data.store
    if store == "stream" or not loader.clips:
        return loader
    if store == "pinned" and device.type != "cuda":
        raise UserError(
            f"data.store = pinned: pinned memory feeds a GPU, but this run is on {device}; use --data resident, mmap "
            "or stream"
        )
    layout, free = log_mel_cache.layout(loader), free_memory(device)
    found = log_mel_cache.find(loader, layout)
    place = None if found else log_mel_pass.writable_place(loader, layout.bytes)
    if store == "auto":
        store, why = choose(layout.bytes, device, free, found is not None or place is not None)
        console.print(f"data.store: auto is {store} for {loader.split}: {why}")
        if store == "stream":
            return loader
    _refuse_too_large(store, layout, device, free)
    if found is None and place is None and store == "mmap":
        raise UserError(
            f"data.store = mmap: no folder has room for {gigabytes(layout.bytes)} of log-mels; make room, set "
            "UNFUSED_CACHE to a folder on another disk, or use --data stream"
        )
    held, source = _held(loader, layout, store, found, place)
    seconds = time.perf_counter() - begin
    console.print(f"data: {gigabytes(layout.bytes)} of log-mels of {loader.split} ready in {seconds:.1f} s, {source}")
    return ResidentLoader(loader, held, seconds)


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _held(
    loader: Loader, layout: Layout, store: Store, found: Path | None, place: Path | None
) -> tuple[HeldLogMels, str]:
    """The log-mels where `store` says, and where they came from: the cache, which is made where there is none."""
    source = "from the cache"
    while True:
        if found is None and place is None:
            return _hold(layout, _computed(loader, layout, store), layout.spans), "from the audio, not kept"
        if found is None:
            assert place is not None
            found = log_mel_pass.make(loader, layout, place)
            source = "from the audio"
        target = None if store == "mmap" else _empty(layout, store, loader.device)
        try:
            index = log_mel_cache.load(found, layout, target)
        except DamagedCache as error:
            if source != "from the cache":
                raise UserError(
                    f"{found}: {error}, though just written; is the disk sound? use --data stream"
                ) from error
            console.print(f"{found}: {error}; it is made again", style="yellow")
            shutil.rmtree(found, ignore_errors=True)
            found, place = None, place or log_mel_pass.writable_place(loader, layout.bytes)
            continue
        return _hold(layout, log_mel_cache.mapped(found) if target is None else target, index), f"{source} ({found})"


def _hold(layout: Layout, frames: torch.Tensor, index: Index) -> HeldLogMels:
    identity = layout.identity
    return HeldLogMels(frames, index[:, 0].copy(), index[:, 1].copy(), identity["mean"], identity["std"])


def _empty(layout: Layout, store: Store, device: torch.device) -> torch.Tensor:
    where = device if store == "resident" else torch.device("cpu")
    return torch.empty(layout.shape, dtype=torch.float16, device=where, pin_memory=store == "pinned")


def _computed(loader: Loader, layout: Layout, store: Store) -> torch.Tensor:
    """The log-mels without a cache: straight to where they will lie."""
    console.print("data: no folder can keep the log-mels, so every run computes them again", style="yellow")
    frames, done = _empty(layout, store, loader.device), 0
    for rows in log_mel_pass.computed(loader, layout):
        frames[done : done + len(rows)] = rows.to(frames.device)
        done += len(rows)
    return frames


def _refuse_too_large(store: Store, layout: Layout, device: torch.device, free: Free) -> None:
    if store == "mmap":
        return
    on_gpu = store == "resident" and device.type == "cuda"
    room = free.device if on_gpu else free.host
    if layout.bytes > room:
        other = "pinned, mmap or stream" if on_gpu else "mmap or stream"
        raise UserError(
            f"data.store = {store}: the log-mels take {gigabytes(layout.bytes)}, but {gigabytes(room)} are free "
            f"{'on ' + str(device) if on_gpu else 'in memory'}; use --data {other}"
        )


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group_room() -> int:
    """What this process's control group (a container, a batch job) still lets it take; no bound where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used + int(stats.get("inactive_file", 0)))
