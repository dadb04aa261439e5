"""What a process that dies, hangs or fails costs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.forkserver import _forkserver
from multiprocessing.popen_forkserver import Popen
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from doubling import Double

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.workers import Workers, start_server
from unfused_fast.shards.sources.reasons import Reason


def _answers(workers: int, *kind: str, seconds: float = 100.0) -> dict[int, Any]:
    jobs = [Double([*range(start, min(start + 3, 20))], *kind) for start in range(0, 20, 3)]
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
        (2, "hangs", 0.5, Reason.HUNG),
        (1, "reads for long", 0.5, 14),
    ],
)
def test_a_process_that_dies_or_hangs_costs_one_item(
    tmp_path: Path, workers: int, kind: str, seconds: float, seventh: object
) -> None:
    found = _answers(workers, kind, str(tmp_path / "mark"), seconds=seconds)
    assert found == {item: 2 * item for item in range(20)} | {7: seventh}


def test_a_process_has_its_next_job_before_an_answer_is_used() -> None:
    """It may die with that job while the answer is used, which costs nothing."""
    drawn = list[int]()

    def jobs() -> Iterator[Double]:
        for item in range(5):
            drawn.append(item)
            yield Double([item])

    found = []
    with Workers(1) as pool:
        for _, answer in pool.answers(jobs()):
            found.append((len(drawn), answer))
            pool._all[0].process.kill()
    assert found == [(2, [0]), (3, [2]), (4, [4]), (5, [6]), (5, [8])]


@pytest.mark.parametrize(
    ("kind", "seconds", "said"),
    [
        ("dies whatever", 100.0, "end repeatedly at the same item of a job; look for the cause"),
        ("never begins", 0.5, r"take longer than 0.5 s repeatedly before their first file"),
    ],
)
def test_what_ends_the_work(kind: str, seconds: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _answers(1, kind, seconds=seconds)


def test_what_native_code_writes_in_a_process_is_not_on_the_screen() -> None:
    """Neither on stdout, where the JSON of a command goes, nor on stderr."""
    with Workers(1) as pool:
        assert [answer for _, answer in pool.answers([Double([], "screens")])] == [[True, True]]


def test_ctrl_c_does_not_end_the_fork_server_while_it_starts() -> None:
    """It is sent to all processes of a terminal."""
    _forkserver._stop()
    start_server()
    server = _forkserver._forkserver_pid
    os.kill(server, signal.SIGINT)
    assert _answers(1)[7] == 14 and _forkserver._forkserver_pid == server
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "this process still gets it"


@pytest.mark.parametrize("times", [1, 2])
def test_a_fork_server_killed_while_it_starts_a_process(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Once costs nothing, twice is an error in words."""
    launch, left = Popen._launch, iter(range(times))

    def killed_first(self: Popen, process: BaseProcess) -> None:
        if next(left, None) is not None:
            _forkserver.ensure_running()
            os.kill(_forkserver._forkserver_pid, signal.SIGSTOP)
            threading.Timer(0.2, os.kill, (_forkserver._forkserver_pid, signal.SIGKILL)).start()
        launch(self, process)

    monkeypatch.setattr(Popen, "_launch", killed_first)
    if times == 1:
        assert _answers(1)[7] == 14
        return
    with pytest.raises(UserError, match=r"^worker processes cannot be started \(.+\); look for the cause"):
        _answers(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_program_is_not_hidden(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of the program"):
        _answers(workers, "fails")
