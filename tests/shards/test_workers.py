"""Order, and what a dying process costs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.shards.audio_files import Reason, Rejected
from unfused_fast.shards.workers import Workers

TASKS = """
import os, signal, time

def double(items):
    time.sleep(0.02 if items[0] % 3 == 0 else 0)
    return [2 * item for item in items]

def die_at_seven(items):
    if 7 in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * item for item in items]

def fail(items):
    raise RuntimeError("a fault of the program")
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Functions that worker processes can import, which those of a test module are not."""
    (tmp_path / "shard_worker_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("shard_worker_tasks")
    del sys.modules["shard_worker_tasks"]


def _answers(task: Callable[..., Any], workers: int, size: int = 3) -> list[tuple[int, Any]]:
    chunks = ([*range(start, min(start + size, 20))] for start in range(0, 20, size))
    with Workers(workers) as pool:
        return list(pool.in_order(task, chunks))


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_come_in_order(tasks: Any, workers: int) -> None:
    assert _answers(tasks.double, workers) == [(item, 2 * item) for item in range(20)]


def test_a_process_that_dies_costs_one_item(tasks: Any) -> None:
    answers = dict(_answers(tasks.die_at_seven, 2))
    rejected = answers.pop(7)
    assert isinstance(rejected, Rejected) and rejected.reason is Reason.CRASHED
    assert answers == {item: 2 * item for item in range(20) if item != 7}


def test_a_fault_of_the_program_is_not_hidden(tasks: Any) -> None:
    with pytest.raises(RuntimeError, match="a fault of the program"):
        _answers(tasks.fail, 2)
