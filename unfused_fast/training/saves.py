"""When a run saves, and what becomes of a save that fails."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.training.checkpoint import Position
from unfused_fast.training.progress import PartTimer
from unfused_fast.training.run_directory import Run
from unfused_fast.training.save_every import SaveEvery


class Saved(Protocol):
    """What saves."""

    timer: PartTimer

    def save(self, run: Run, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """As Stage.save."""

    def wait(self) -> None:
        """As Stage.wait."""


class Saves:
    """The saves of a run: one at a time, written while training goes on.

    One that fails is told, and the next is tried; only the last one may not fail. As a context manager it waits for
    what is being written when the block ends.
    """

    def __init__(self, state: Saved, run: Run, every: SaveEvery, saved: Position) -> None:
        """`saved` is where the run went on; Position(0) where it begins."""
        self._state, self._run, self._every = state, run, every
        self._saved, self.last = saved, saved
        self._when = time.monotonic()

    def __enter__(self) -> Saves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):  # who presses Ctrl-C twice will not wait
            self._tried()

    def due(self, step: int) -> bool:
        """Whether to save within the epoch, after so many steps of the run."""
        if self._every.steps is not None:
            return step % self._every.steps == 0
        return self._every.seconds is not None and time.monotonic() - self._when >= self._every.seconds

    def begin(self, position: Position, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Saves at a position, once the save before it is done."""
        with self._state.timer.part("save"):
            self._tried()
            self._state.save(self._run, position, tensors, notes)
        self.last, self._when = position, time.monotonic()

    def settle(self) -> None:
        """Waits for the last save. Raises UserError where it failed."""
        self._state.wait()
        self._saved = self.last

    def said(self) -> str:
        """What is saved, in words; waits for the last save."""
        self._tried()
        return f"{self._saved} is the last one saved" if any(self._saved) else "nothing was saved"

    def _tried(self) -> None:
        try:
            self.settle()
        except UserError as error:
            self.last = self._saved
            console.print(f"not saved, training goes on: {error}", style="yellow")
