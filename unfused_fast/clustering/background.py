"""Work in a thread of its own while the caller goes on: what is written to disk while training continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """One piece of work at a time."""

    def __init__(self, name: str) -> None:
        """`name` is that of the threads."""
        self._name = name
        self._future: Future[Result] | None = None

    def start(self, work: Callable[[], Result]) -> None:
        """Begins the work, once the work before it is done; raises what that raised."""
        self.wait()
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._future = future
        # a daemon: a second Ctrl-C ends at once, and a write that is cut off leaves the files before it
        Thread(target=run, name=self._name, daemon=True).start()

    def wait(self) -> Result | None:
        """Waits for the last work: its result, or None before the first. Raises what it raised, once."""
        future, self._future = self._future, None
        return None if future is None else future.result()
