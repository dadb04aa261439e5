"""What the ranks of a run tell each other before they go on: that a signal came, that a save is due, that clips cannot
be read.
"""

from __future__ import annotations

from collections.abc import Iterator

from unfused_fast.data import Batch
from unfused_fast.distributed import Ranks
from unfused_fast.errors import UserError
from unfused_fast.training.progress import PartTimer
from unfused_fast.training.run_directory import Run


class Unread(UserError):
    """Clips that a rank cannot read, and why."""


class Agreement:
    """Between the ranks of a run; all ask at the same times."""

    def __init__(self, run: Run, ranks: Ranks, timer: PartTimer) -> None:
        self._run, self._ranks, self._timer = run, ranks, timer
        self.stopping = False
        """Whether a signal came to any rank, as of the last time that all were asked: the same on each."""

    def ask(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has it set; and notes whether one of them got a signal. `run.stopping` alone
        would not do: a signal sets it at any time, here or on another rank only.
        """
        self.stopping, *found = self._ranks.any_rank(self._run.stopping, *flags)
        return tuple(found)

    def read(self, batches: Iterator[Batch], due: bool = False) -> tuple[Batch | None, bool]:
        """The next batch, None at the end, and whether any rank has `due` set. Raises Unread on every rank where one
        of them cannot read its clips.
        """
        batch, unread = None, None
        try:
            with self._timer.part("load"):
                batch = next(batches, None)
        except UserError as error:
            unread = error
        due, failed = self.ask(due, unread is not None)
        if failed:
            said = dict.fromkeys(self._ranks.texts("" if unread is None else str(unread)))
            try:
                raise Unread("; ".join(filter(None, said))) from unread  # each once
            finally:
                del unread  # it refers to this frame, and so would keep the reader and its files open
        return batch, due
