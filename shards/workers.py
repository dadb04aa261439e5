"""Worker processes: tasks go out in order, answers come back in order, and a dead process costs one item."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self, TypeVar

from unfused_fast.errors import UserError
from unfused_fast.shards.audio_files import Reason, Rejected

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CHUNKS_IN_FLIGHT = 3
"""Chunks per worker, out or decoded and not yet written. Ours: one at work, one waiting, one to even out lengths."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool that outlives its processes. With `count` 1 everything runs in this process, and a crash ends it."""

    def __init__(self, count: int) -> None:
        """Starts the first process. Raises UserError when it cannot start."""
        self.count = count
        self._pool = self._start() if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def in_order(
        self, task: Callable[[Sequence[Item]], list[Answer | Rejected]], chunks: Iterable[Sequence[Item]]
    ) -> Iterator[tuple[Item, Answer | Rejected]]:
        """Every item with its answer, in the order given, whatever the number of workers.

        An item that kills its process, twice, the second time alone, gets `Rejected(Reason.CRASHED)` for an answer.
        """
        if self._pool is None:
            for chunk in chunks:
                yield from zip(chunk, task(chunk), strict=True)
            return
        waiting: deque[tuple[Sequence[Item], Future[list[Answer | Rejected]]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, self._submit(task, chunk)))
            if len(waiting) >= CHUNKS_IN_FLIGHT * self.count:
                yield from self._first(task, waiting)
        while waiting:
            yield from self._first(task, waiting)

    def _first(self, task: Callable[..., Any], waiting: deque[tuple[Any, Future[Any]]]) -> Iterator[Any]:
        chunk, future = waiting.popleft()
        try:
            answers = future.result()
        except BrokenProcessPool:
            self._restart()
            answers = [self._alone(task, item) for item in chunk]
            for place, (later, known) in enumerate(waiting):
                if known.cancelled() or not known.done() or known.exception() is not None:
                    waiting[place] = (later, self._submit(task, later))
        return zip(chunk, answers, strict=True)

    def _alone(self, task: Callable[..., Any], item: Any) -> Any:
        try:
            return self._submit(task, [item]).result()[0]
        except BrokenProcessPool:
            self._restart()
            return Rejected(Reason.CRASHED)

    def _submit(self, task: Callable[..., Any], chunk: Any) -> Future[Any]:
        assert self._pool is not None
        try:
            return self._pool.submit(task, chunk)
        except BrokenProcessPool as error:  # answered by _first, in its turn
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def _restart(self) -> None:
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # Not fork: the caller may hold threads and locks of torch, and a fork would copy them half way.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["unfused_fast.shards.audio_files"])
        pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_prepare_process)
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            pool.shutdown()
            raise UserError(
                "the worker processes end as soon as they start; call pack() below `if __name__ == '__main__':`, "
                "or with one worker (--workers 1)"
            ) from error
        return pool


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
