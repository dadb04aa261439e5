"""Runs that stop early, as Ctrl-C would stop them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from unfused_fast.loop import EpochProgress
from unfused_fast.training import Interrupted


@contextmanager
def stopped_after(last: int) -> Iterator[None]:
    """Runs inside are interrupted at the end of an epoch, once it is saved and logged."""
    original = EpochProgress.epoch

    def stop(self: EpochProgress, epoch: int, note: str) -> None:
        original(self, epoch, note)
        if epoch == last:
            raise Interrupted("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochProgress, "epoch", stop)
        yield
