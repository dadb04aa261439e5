"""What a process that dies, hangs or fails costs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.workers import Workers
from unfused_fast.shards.sources.reasons import Reason

JOBS = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Double:
    items: list
    kind: str = ""
    mark: str = ""

    def answer(self, bad, at):
        answers = []
        if self.kind == "never begins":
            time.sleep(1000)
        for place, item in enumerate(self.items):
            at(place)
            if item == 7 and self.kind == "dies whatever":
                os.kill(os.getpid(), signal.SIGKILL)
            if place in bad:
                answers.append(str(bad[place].reason))
                continue
            if item == 7 and self.kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 7 and self.kind == "dies once" and not Path(self.mark).exists():
                Path(self.mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 7 and self.kind == "hangs":
                time.sleep(1000)
            if item == 7 and self.kind == "fails":
                raise RuntimeError("a fault of the program")
            answers.append(2 * item)
        return answers
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A job that worker processes can import, which one of a test module is not."""
    (tmp_path / "shard_worker_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("shard_worker_jobs").Double
    del sys.modules["shard_worker_jobs"]


def _answers(double: Any, workers: int, *kind: str, seconds: float = 100.0) -> dict[int, Any]:
    jobs = [double([*range(start, min(start + 3, 20))], *kind) for start in range(0, 20, 3)]
    with Workers(workers, seconds_per_item=seconds) as pool:
        found = {
            item: answer
            for job, answers in pool.answers(jobs)
            for item, answer in zip(job.items, answers, strict=True)  # type: ignore[attr-defined]
        }
    return dict(sorted(found.items()))


@pytest.mark.parametrize(
    ("workers", "kind", "seconds", "seventh"),
    [
        (0, "", 100.0, 14),
        (3, "", 100.0, 14),
        (1, "dies", 100.0, Reason.CRASHED),
        (2, "dies", 100.0, Reason.CRASHED),
        (2, "dies once", 100.0, 14),
        (2, "hangs", 1.0, Reason.HUNG),
    ],
)
def test_a_process_that_dies_or_hangs_costs_one_item(
    double: Any, tmp_path: Path, workers: int, kind: str, seconds: float, seventh: object
) -> None:
    found = _answers(double, workers, kind, str(tmp_path / "mark"), seconds=seconds)
    assert found == {item: 2 * item for item in range(20)} | {7: seventh}


@pytest.mark.parametrize(
    ("kind", "seconds", "said"),
    [
        ("dies whatever", 100.0, "end repeatedly at the same item of a job; look for the cause"),
        ("never begins", 0.5, r"take longer than 0.5 s repeatedly before their first file"),
    ],
)
def test_what_ends_the_work(double: Any, kind: str, seconds: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _answers(double, 1, kind, seconds=seconds)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_program_is_not_hidden(double: Any, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of the program"):
        _answers(double, workers, "fails")
