"""How much memory a process may still use, on the GPU and, within the limits of its control groups, on the host; and
what glibc does with freed memory.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import psutil
import torch

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
VERSION_2 = "memory.max", "memory.current", "inactive_file"
"""Files of a control group with its limit and its usage, and the entry of memory.stat with the reclaimable part."""
NO_BOUND = 1 << 62
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Names of mallopt's parameters in C. Source: malloc.h of glibc."""
KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
"""Nothing is mapped, and up to 2 GB stay free at the end of the heap, the largest number that glibc accepts."""
AS_USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20}
"""What glibc comes to by itself in a process with large blocks. Source: mallopt(3), dynamic mmap threshold."""


class Free(NamedTuple):
    """Bytes that are free."""

    device: int
    """On the GPU; 0 without one."""
    host: int
    """In memory, without swapping, within the limits of this process's control groups."""


def free_memory(device: torch.device) -> Free:
    """What is free now. On a GPU this includes unused memory of this process's allocator, which can be released, and
    what only reference cycles still hold, such as the log-mels of a stage that has ended, is released first.
    """
    on_gpu = 0
    if device.type == "cuda":
        gc.collect()  # Python does not do it for want of a GPU's memory
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        on_gpu = torch.cuda.mem_get_info(device)[0] + unused
    return Free(on_gpu, min(psutil.virtual_memory().available, group_room()))


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[bool]:
    """On a CPU, glibc keeps the memory that the block frees for the next step, and returns it to the system at the end;
    yields whether it does.

    For steps with equal allocations: varying sizes would fragment the heap. Ours: by default glibc maps each large
    activation again, page by page, in which a training step spent a third of its time (benchmarks/freed_memory.py).
    """
    libc: Any = None if sys.platform == "win32" else ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield False
        return
    try:
        yield all(libc.mallopt(name, value) == 1 for name, value in KEPT.items())
    finally:
        for name, value in AS_USUAL.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def pinned_bytes(size: int) -> int:
    """What `size` bytes of pinned memory take. Source: torch.cuda.memory.host_memory_stats (blocks are rounded up to
    the next power of two).
    """
    return 1 << (size - 1).bit_length() if size else 0


def group_room(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """Bytes that the control groups of this process (a container, a batch job) still allow: the smallest value of its
    own group and of all parents; NO_BOUND where none has a limit.

    Reclaimable file cache is not counted as used. Source: the kernel's cgroup-v2.rst, and cgroup-v1/memory.rst for
    version 1. Ours: a container may see the path of a group that is not mounted in it; then its parents alone count.
    """
    rooms = [NO_BOUND]
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (mounted / "memory", VERSION_1) if controllers else (mounted, VERSION_2)
        own = PurePosixPath(path.lstrip("/"))
        inside = () if ".." in own.parts else (own, *own.parents)
        rooms += [_room(root / folder, *files) for folder in (*inside, PurePosixPath())]
    return min(rooms)


def _room(group: Path, limit_file: str, used_file: str, dropped: str) -> int:
    try:
        limit = (group / limit_file).read_text(encoding="ascii").strip()
        used = int((group / used_file).read_text(encoding="ascii"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return NO_BOUND
    return NO_BOUND if limit == "max" else max(0, int(limit) - used + int(stats.get(dropped, 0)))
