"""What is free: of the machine, of its control groups as the kernel lays them out, of the GPU; what pinning takes."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from unfused_fast.memory import NO_BOUND, free_memory, freed_memory_kept, group_room


def _given_back() -> int:
    """Bytes that go back to the system when the block ends."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with freed_memory_kept(torch.device("cpu")):
        activations = [torch.ones(20 * 2**20) for _ in range(2)]
        result = torch.ones(5 * 2**20)  # noqa: F841  in use above them
        del activations
        kept = resident()
    return kept - resident()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library gives nothing back")
def test_freed_memory_is_kept_for_the_next_step_and_goes_back_at_the_end() -> None:
    """160 MB below a block that is in use, which by itself keeps the heap from shrinking. In a process that no other
    thread shares.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as alone:
        assert alone.submit(_given_back).result() >= 150 * 2**20


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "own", "room"),
    [
        ({"": None, "job": 5000, "job/step": None}, "/job/step", 5000 - 700 + 100),  # a parent's
        ({"": 2000, "job": 5000, "job/step": 3000}, "/job/step", 2000 - 700 + 100),
        ({"": 4000}, "/docker/0123", 4000 - 700 + 100),  # a path that is not mounted in the container
        ({"": 4000, "other": 1000}, "/../other", 4000 - 700 + 100),  # a path outside its name space
        ({"": 600}, "/", 0),
        ({"": None, "job": None}, "/job", NO_BOUND),
    ],
)
def test_the_least_limit_of_all_groups_holds(
    tmp_path: Path, version: int, limits: dict[str, int | None], own: str, room: int
) -> None:
    for name, limit in limits.items():
        group = tmp_path / "fs" / ("memory" if version == 1 else "") / name
        group.mkdir(parents=True, exist_ok=True)
        if version == 1:
            (group / "memory.limit_in_bytes").write_text(f"{limit or 9223372036854771712}\n")
            (group / "memory.usage_in_bytes").write_text("700\n")
            (group / "memory.stat").write_text("cache 9\ninactive_file 40\ntotal_inactive_file 100\n")
        else:
            (group / "memory.max").write_text(f"{limit or 'max'}\n")
            (group / "memory.current").write_text("700\n")
            (group / "memory.stat").write_text("anon 9\ninactive_file 100\n")
    groups = tmp_path / "cgroup"
    lines = ["9:name=systemd:/x", "8:cpu,cpuacct:/other", f"4:memory:{own}", "0::/"] if version == 1 else [f"0::{own}"]
    groups.write_text("\n".join(lines) + "\n")
    found = group_room(groups, tmp_path / "fs")
    assert found == room or (room == NO_BOUND and found >= NO_BOUND)
    assert group_room(tmp_path / "nothing", tmp_path / "fs") == NO_BOUND


def test_on_a_gpu_what_only_a_cycle_holds_is_released_first(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.nn.Module()
    held.method = held.forward
    gone = weakref.ref(held)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 if gone() is None else 0, 20))
    gc.disable()
    try:
        del held
        there = gone() is not None  # an assertion would hold it
        assert there and free_memory(torch.device("cuda")).device == 15
    finally:
        gc.enable()


@pytest.mark.gpu
def test_what_the_allocator_holds_unused_is_free() -> None:
    device = torch.device("cuda")
    before = free_memory(device).device
    held = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert free_memory(device).device == pytest.approx(before - len(held), abs=1 << 28)
    del held
    assert torch.cuda.memory_reserved(device) >= 1 << 30, "not given back to the driver"
    assert free_memory(device).device == pytest.approx(before, abs=1 << 28)
