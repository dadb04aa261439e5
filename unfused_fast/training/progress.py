"""What training shows of itself: seconds of each part of an epoch, and how far it has come."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from unfused_fast.console import console, progress_bar
from unfused_fast.data import Batch
from unfused_fast.training.profiling import Profile


class PartTimer:
    """Seconds of each part of an epoch. On CUDA the parts are measured by events, which are read without waiting for
    the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.profile: Profile | None = None
        """What gets the parts' names."""
        self._events = deque[tuple[str, torch.cuda.Event, torch.cuda.Event]]()
        """Of parts that the device has not finished, oldest first."""
        self._free = list[torch.cuda.Event]()
        """Read, to be recorded again."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what the block takes to a part."""
        with nullcontext() if self.profile is None else self.profile.part(name):
            if self.cuda:
                self._collect()
                begin, end = self._event(), self._event()
                begin.record()
                yield
                end.record()
                self._events.append((name, begin, end))
                return
            start = time.perf_counter()
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def next(self, name: str, items: Iterator[Batch]) -> Batch | None:
        """The next item, its waiting time added to a part; None at the end."""
        with self.part(name):
            return next(items, None)

    def read(self) -> dict[str, float]:
        """Part -> seconds since the last read."""
        if self._events:
            torch.cuda.synchronize()
        self._collect()
        seconds, self.seconds = self.seconds, {}
        return {name: round(value, 4) for name, value in seconds.items()}

    def _event(self) -> torch.cuda.Event:
        return self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _collect(self) -> None:
        """Adds up the parts that the device has finished; waits for none."""
        while self._events and self._events[0][2].query():  # type: ignore[no-untyped-call]
            name, begin, end = self._events.popleft()
            self.seconds[name] = self.seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._free += [begin, end]


class EpochProgress:
    """A bar over the steps of all epochs on a terminal; elsewhere a line for about every tenth of the epochs."""

    def __init__(self, stage: str, epochs: int, steps: int, done: int) -> None:
        """`done` of epochs * steps steps were done before."""
        self.stage, self.epochs = stage, epochs
        self._progress = progress_bar()
        self._task = self._progress.add_task(stage, total=epochs * steps, completed=done, note="")

    def __enter__(self) -> EpochProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def epoch(self, epoch: int, note: str) -> None:
        """One epoch is done; `note` holds its numbers."""
        self._progress.update(self._task, note=note)
        if not console.is_terminal and (epoch == self.epochs or epoch % max(1, math.ceil(self.epochs / 10)) == 0):
            console.print(f"{self.stage} {epoch}/{self.epochs}  {note}")
