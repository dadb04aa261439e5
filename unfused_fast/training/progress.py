"""Progress of training: seconds of each part of an epoch, a progress bar, and `--profile`: the time of each operator in
some steps, as a trace and as a table.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from unfused_fast.console import console, progress_bar, shows_bars

WARM_UP, STEPS = 3, 10
"""Steps that are left out, and steps that are recorded. Ours: the first ones allocate, compile and fill caches."""
OPERATORS = 10
"""Lines of the table."""


class Profile:
    """Records STEPS steps after WARM_UP others, or fewer in a shorter run; does nothing when disabled.

    Writes FOLDER/trace.json (for Perfetto or chrome://tracing) and FOLDER/operators.txt.
    """

    def __init__(self, folder: Path, device: torch.device, asked: bool) -> None:
        self._folder, self._cuda = folder, device.type == "cuda"
        self._profile: profile | None = None
        if asked:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
            steps = schedule(wait=1, warmup=WARM_UP - 1, active=STEPS, repeat=1)
            self._profile = profile(activities=activities, schedule=steps, on_trace_ready=self._write)

    def __enter__(self) -> Profile:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            if not (self._folder / "operators.txt").exists():
                console.print(f"--profile: the run has no more than {WARM_UP} steps, so nothing was recorded")

    def step(self) -> None:
        """Called after each training step."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, recorded: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / "trace.json"))
        order = f"self_{'device' if self._cuda else 'cpu'}_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=OPERATORS, max_name_column_width=60)
        (self._folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
        console.print(
            f"--profile: wrote {self._folder}/trace.json and operators.txt, the {OPERATORS} slowest operators"
        )


class PartTimer:
    """Seconds of each part of an epoch, and their names in a trace. On CUDA the parts are measured by events, which are
    read without waiting for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self._events = deque[tuple[str, torch.cuda.Event, torch.cuda.Event]]()
        """Events of parts that the device has not finished, oldest first."""
        self._free = list[torch.cuda.Event]()
        """Events for reuse."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a part."""
        with torch.profiler.record_function(name):
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
    """A bar over the steps of all epochs where bars are drawn; elsewhere a line for about every tenth of the epochs."""

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
        """Called after each step."""
        self._progress.advance(self._task)

    def epoch(self, epoch: int, note: str) -> None:
        """Called after each epoch; `note` holds its numbers."""
        self._progress.update(self._task, note=note)
        if not shows_bars() and (epoch == self.epochs or epoch % max(1, math.ceil(self.epochs / 10)) == 0):
            console.print(f"{self.stage} {epoch}/{self.epochs}  {note}")
