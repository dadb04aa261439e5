"""Worker processes: each answers one job at a time, item by item; a process that dies or hangs loses one item.

Ours, not pebble's pool: there all workers share one pipe, and one killed while it sends its answer blocks the others.
"""

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
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from unfused_fast.errors import UserError, cause
from unfused_fast.shards.sources.reasons import Reason, Rejected

Answer = TypeVar("Answer")
AnswerOut = TypeVar("AnswerOut", covariant=True)
Bad = Mapping[int, Rejected]


class At(Protocol):
    """Called before each item."""

    def __call__(self, item: int, size: int = 0) -> None:
        """Args: size: bytes that are read besides its audio, such as a long member of an archive to its end."""


SECONDS_PER_ITEM = 120.0
"""Longest that one item may take. Ours: an hour of audio is decoded and resampled in seconds."""
BYTES_PER_SECOND = 2e6
"""Of what `At` calls size: it adds to the seconds of an item. Ours: a share of a slow disk that all processes read."""
LONGEST_READ_SECONDS = 3600.0
"""Most that it adds. Ours: 7 GB at that rate; what is read for longer hangs."""
PROGRESS_SECONDS = 0.25
OF_TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that every process of a terminal gets, by Ctrl-C and when the terminal is closed."""


class Job(Protocol[AnswerOut]):
    """Pickled, sent to a process, and answered there."""

    def answer(self, bad: Bad, at: At) -> AnswerOut:
        """Does the job. Calls `at(item)` before each item; items in `bad` are rejected without being touched."""


class Pool(Protocol):
    """Runs jobs."""

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """Every job with its answer, in the order in which they finish."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    item: Any
    """Shared with the process: the item that it works on; -1 before the first."""


@dataclass
class _Task:
    job: Any
    bad: dict[int, Rejected] = field(default_factory=dict)
    suspected: set[int] = field(default_factory=set)
    """Items at which a process died once."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(given: int | None) -> int:
    """The processes that were asked for; None: one per core. Raises UserError: less than 0."""
    if given is not None and given < 0:
        raise UserError(f"{given} workers, but at least 1 is needed; leave it out for one per core")
    return available_cores() if given is None else given


def keep_freed_memory() -> None:
    """From now on glibc maps only blocks of 32 MB and more, and keeps up to 64 MB of what this process frees.

    A block just below 32 MB, the most that glibc takes as a measure, is allocated and freed. Ours: the memory of each
    clip went back to the kernel and came again page by page, which took longer than resampling. Source: mallopt(3),
    dynamic mmap threshold.
    """
    bytes((1 << 25) - (1 << 13))


def start_server() -> None:
    """Starts the process from which workers are forked, without waiting for it: it imports what they need while this
    process does other things. Ours: so that a small set does not wait for one after the other.

    Signals of the terminal are for this process alone: they are blocked in the other, which would end in its imports
    with a traceback.
    """
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        with contextlib.suppress(OSError):  # the first worker reports it
            resource_tracker.ensure_running()  # first, because it unblocks the signal
            before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINAL)
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> Any:
    # Not fork: the caller may hold threads and locks of torch, and a fork would copy them half way.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["unfused_fast.shards.packing.pack_shard"])
    return context


class Workers:
    """`count` processes; with 0 everything runs in this process, and a crash ends it."""

    def __init__(self, count: int, seconds_per_item: float = SECONDS_PER_ITEM) -> None:
        """Starts no process yet."""
        self.count, self.seconds_per_item = count, seconds_per_item
        self._context = _context()
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.process.join()
            worker.pipe.close()
        self._all, self._idle = [], []

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """Every job with its answer, as they finish; jobs are drawn from the iterable as processes become free.

        An item at which a process dies is tried once more; when it dies there again, or takes longer than
        `seconds_per_item`, the job is repeated with that item rejected, `Reason.CRASHED` or `Reason.HUNG`.

        Args:
            progress: called now and then with the number of finished items of unfinished jobs.

        Raises:
            UserError: processes cannot be started, or die or hang before their first item, or at an item that is
                rejected already. Whatever else a job raises.
        """
        if not self.count:
            yield from ((job, job.answer({}, lambda item, size=0: None)) for job in jobs)
            return
        waiting, again = map(_Task, jobs), deque[_Task]()
        busy: dict[Any, tuple[_Worker, _Task]] = {}
        done = list[tuple[Job[Answer], Answer]]()
        while True:
            while len(busy) < self.count:
                task = again.popleft() if again else next(waiting, None)
                if task is None:
                    break
                worker = self._idle.pop() if self._idle else self._start()
                worker.item.value = -1
                with contextlib.suppress(OSError):  # it died; found below
                    worker.pipe.send((task.job, task.bad))
                busy[worker.pipe] = worker, task
            yield from done  # the processes have their next jobs
            done.clear()
            if not busy:
                return
            ready = wait(list(busy), PROGRESS_SECONDS)
            if progress is not None:
                progress(sum(max(0, worker.item.value) for worker, _ in busy.values()))
            for pipe in ready:
                worker, task = busy.pop(pipe)
                try:
                    answer, error = worker.pipe.recv()
                except (EOFError, OSError):
                    self._note_end(worker, task)
                    again.append(task)
                    continue
                self._idle.append(worker)
                if error is not None:
                    raise error
                done.append((task.job, answer))

    def _note_end(self, worker: _Worker, task: _Task) -> None:
        """Removes a dead process, and notes the item that it worked on."""
        worker.process.join()
        worker.pipe.close()
        self._all.remove(worker)
        item, hung = worker.item.value, worker.process.exitcode == -signal.SIGALRM
        if item in (task.suspected if item < 0 else task.bad):
            how = f"take longer than {self.seconds_per_item:g} s" if hung else "end"
            where = "before their first file" if item < 0 else "at the same item of a job"
            raise UserError(
                f"worker processes {how} repeatedly {where}; look for the cause (out of memory? a disk that hangs?) in "
                "the system log, call pack() below `if __name__ == '__main__':`, and run the same command again"
            )
        if hung and item >= 0:
            task.bad[item] = Rejected(Reason.HUNG, f"took longer than {self.seconds_per_item:g} s")
        elif item in task.suspected:
            task.bad[item] = Rejected(Reason.CRASHED)
        task.suspected.add(item)

    def _start(self, again: bool = True) -> _Worker:
        """Args: again: one more time, where the server that forks processes ends, killed from outside.

        Raises:
            UserError: no process can be started.
        """
        ours, theirs = self._context.Pipe()
        item = self._context.RawValue("i", -1)
        arguments = (theirs, item, self.seconds_per_item, dict(os.environ))
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        start_server()  # if it does not run
        try:
            process.start()
        except (EOFError, OSError) as error:
            ours.close()
            if again:
                time.sleep(PROGRESS_SECONDS)  # until the server has ended
                return self._start(again=False)
            raise UserError(
                f"worker processes cannot be started ({cause(error)}); look for the cause (out of memory? killed?) in "
                "the system log, and run the same command again"
            ) from error
        finally:
            theirs.close()
        self._all.append(_Worker(process, ours, item))
        return self._all[-1]


def _work(pipe: Connection, place: Any, seconds_per_item: float, environment: dict[str, str]) -> None:
    """A process: jobs come in, answers or exceptions go out, until the pipe is closed.

    An item that takes too long ends the process by SIGALRM, whatever native code it is in.
    """
    os.environ.update(environment)  # a fork server keeps the environment of its start
    keep_freed_memory()
    for number in OF_TERMINAL:
        signal.signal(number, signal.SIG_IGN)  # the parent handles them
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as null:  # native libraries write to the screen
        for screen in filter(None, (sys.__stdout__, sys.__stderr__)):
            os.dup2(null.fileno(), screen.fileno())

    def at(item: int, size: int = 0) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds_per_item + min(size / BYTES_PER_SECOND, LONGEST_READ_SECONDS))
        place.value = item

    while True:
        try:
            job, bad = pipe.recv()
        except EOFError:
            return
        at(-1)
        answer: Any = None
        error: Exception | None = None
        try:
            answer = job.answer(bad, at)
        except Exception as raised:  # the parent raises it
            raised.add_note(traceback.format_exc())
            error = raised
        place.value = -1
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send((answer, error))


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
