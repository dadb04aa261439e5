"""Runs in which something happens after some steps, and runs that stop early, as Ctrl-C would stop them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unfused_fast.distributed.ranks import Ranks
from unfused_fast.errors import Interrupted
from unfused_fast.training.loop import Trainer
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
def after_calls(owner: type, name: str, times: int, act: Callable[[], object]) -> Iterator[None]:
    """`act` is called as the call of a method ends that is the last of so many inside the block."""
    original, done = getattr(owner, name), 0

    def method(*given: Any) -> Any:
        nonlocal done
        made, done = original(*given), done + 1
        if done == times:
            act()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        yield


def after_steps(steps: int, act: Callable[[], object]) -> Any:
    """`act` is called once so many steps of training are done inside the block."""
    return after_calls(Trainer, "train_batch", steps, act)


def signalled_after_question(times: int) -> Any:
    """This process gets SIGTERM just after the ranks told each other, so many times, that none of them got one."""
    return after_calls(Ranks, "any_rank", times, lambda: os.kill(os.getpid(), signal.SIGTERM))


def signalled_after(steps: int, number: signal.Signals = signal.SIGTERM) -> Any:
    """This process gets a signal once so many steps are done inside the block."""
    return after_steps(steps, lambda: os.kill(os.getpid(), number))


def stopped_twice(train: Callable[..., Any]) -> None:
    """`train("--resume")` and the like, three times to its end: SIGTERM after 4 steps, and after 2 of the second. Each
    goes on where the one before stopped.
    """
    for steps, more in ((4, []), (2, ["--resume"])):
        with signalled_after(steps):
            done = train(*more)
        assert done.code == 130 and "damaged" not in done.err
    done = train("--resume")
    assert done.code == 0 and "damaged" not in done.err
