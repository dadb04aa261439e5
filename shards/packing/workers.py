"""Worker processes: each answers one task at a time, item by item; a process that dies or hangs costs one item."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from unfused_fast.errors import UserError
from unfused_fast.shards.sources.reasons import Reason, Rejected

Answer = TypeVar("Answer")
AnswerOut = TypeVar("AnswerOut", covariant=True)
Bad = Mapping[int, Rejected]
At = Callable[[int], None]

SECONDS_PER_ITEM = 120.0
"""Longest that one item may take. Ours: an hour of audio is decoded and resampled in seconds."""
LOOK_EVERY_SECONDS = 0.25


class Job(Protocol[AnswerOut]):
    """A task: pickled, sent to a process, answered there."""

    def answer(self, bad: Bad, at: At) -> AnswerOut:
        """Does the task, calling `at(item)` before each item; items in `bad` are rejected without being touched."""


class Pool(Protocol):
    """Where tasks are answered."""

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """Every job with its answer, as they come."""


@dataclass
class _Process:
    process: Any
    pipe: Connection
    place: Any
    """Shared with the process: the item it is at, and since when (time.monotonic)."""
    job: Any = None
    bad: dict[int, Rejected] = field(default_factory=dict)
    suspected: set[int] = field(default_factory=set)
    """Items at which a process died once."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`count` processes; with 0 everything runs in this process, and a crash ends it."""

    def __init__(self, count: int, seconds_per_item: float = SECONDS_PER_ITEM) -> None:
        """Starts no process yet."""
        self.count, self.seconds_per_item = count, seconds_per_item
        # Not fork: the caller may hold threads and locks of torch, and a fork would copy them half way.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["unfused_fast.shards.packing.pack_shard"])
        self._processes: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._processes:
            worker.process.kill()
        for worker in self._processes:
            worker.process.join()
            worker.pipe.close()
        self._processes = []

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """Every job with its answer, as they come; jobs are drawn from the iterable as processes become free.

        An item at which a process dies is tried once more; when it dies there again, or takes longer than
        `seconds_per_item`, the job is done anew with that item rejected, `Reason.CRASHED` or `Reason.HUNG`.

        Args:
            progress: told now and then how many items of unfinished jobs are done.

        Raises:
            UserError: processes die or hang before they begin, or at an item that is rejected already. Whatever else a
                job raises.
        """
        if not self.count:
            yield from ((job, job.answer({}, _ignore)) for job in jobs)
            return
        waiting, again = iter(jobs), deque[tuple[Any, dict[int, Rejected], set[int]]]()
        busy: list[_Process] = []
        while True:
            while len(busy) < self.count:
                job: Any
                job, bad, suspected = again.popleft() if again else (next(waiting, None), {}, set())
                if job is None:
                    break
                worker = next((known for known in self._processes if known not in busy), None) or self._start()
                worker.job, worker.bad, worker.suspected = job, bad, suspected
                worker.place[:] = (-1, time.monotonic())
                with contextlib.suppress(OSError):  # dead: found below
                    worker.pipe.send((job, bad))
                busy.append(worker)
            if not busy:
                return
            ready = wait(
                [worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy], LOOK_EVERY_SECONDS
            )
            if progress is not None:
                progress(sum(max(0, int(worker.place[0])) for worker in busy))
            for worker in list(busy):
                stuck = time.monotonic() - worker.place[1] > self.seconds_per_item
                if not (stuck or worker.pipe in ready or worker.process.sentinel in ready):
                    continue
                try:
                    answer, error = worker.pipe.recv() if worker.pipe.poll() else self._end(worker, stuck)
                except (EOFError, OSError):
                    answer, error = self._end(worker, stuck)
                busy.remove(worker)
                if error is not None:
                    raise error
                if answer is _LOST:
                    again.append((worker.job, worker.bad, worker.suspected))
                else:
                    yield worker.job, answer

    def _end(self, worker: _Process, stuck: bool) -> tuple[Any, Exception | None]:
        """Takes a dead or stuck process out, and notes the item that it was at."""
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._processes.remove(worker)
        item, late = int(worker.place[0]), f"longer than {self.seconds_per_item:g} s"
        if item < 0 and item in worker.suspected:
            return None, UserError(
                f"a worker process takes {late} to begin; look at what keeps the machine or its disks busy, and give "
                "the same command again"
                if stuck
                else "the worker processes end as soon as they start; call pack() below `if __name__ == '__main__':`, "
                "or look for the reason (memory?) in the system's log"
            )
        if item in worker.bad:
            return None, UserError(
                f"a worker process {f'takes {late}' if stuck else 'ends'} again and again at the same place of a job; "
                "look for the reason (memory? a disk that hangs?) in the system's log, and give the same command again"
            )
        if stuck and item >= 0:
            worker.bad[item] = Rejected(Reason.HUNG, f"took {late}")
        elif item in worker.suspected:
            worker.bad[item] = Rejected(Reason.CRASHED)
        else:
            worker.suspected.add(item)
        return _LOST, None

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        place = self._context.RawArray("d", 2)
        process = self._context.Process(target=_work, args=(theirs, place, dict(os.environ)), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(_Process(process, ours, place))
        return self._processes[-1]


_LOST = object()


def _ignore(item: int) -> None:
    """Nobody watches."""


def _work(pipe: Connection, place: Any, environment: dict[str, str]) -> None:
    """A process: jobs come in, answers or exceptions go out, until the pipe is closed."""
    os.environ.update(environment)  # a fork server has that of its own start
    _prepare_process()

    def at(item: int) -> None:
        place[:] = (item, time.monotonic())

    while True:
        try:
            job, bad = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        error: Exception | None = None
        try:
            answer = job.answer(bad, at)
        except Exception as raised:  # the parent raises it
            raised.add_note(traceback.format_exc())
            error = raised
        at(-1)
        pipe.send((answer, error))


def _prepare_process() -> None:
    """Ctrl-C is the parent's to handle, this process ends with the parent, native libraries keep off the screen."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stderr__.fileno() if sys.__stderr__ else 2)
        os.close(null)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
