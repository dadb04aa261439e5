"""Runs that stop early, as Ctrl-C would stop them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from unfused_fast.training.losses import Losses
from unfused_fast.training.options import Interrupted
from unfused_fast.training.progress import EpochProgress


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


@contextmanager
def signalled_after(steps: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """This process gets a signal once so many steps are done inside the block."""
    original, done = Losses.add, 0

    def add(self: Losses, loss: Tensor) -> None:
        nonlocal done
        original(self, loss)
        done += 1
        if done == steps:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Losses, "add", add)
        yield


def stopped_twice(train: Callable[..., Any]) -> None:
    """`train("--resume")` and the like, three times to its end: SIGTERM after 4 steps, and after 2 of the second."""
    for steps, more in ((4, []), (2, ["--resume"])):
        with signalled_after(steps):
            assert train(*more).code == 130
    assert train("--resume").code == 0
