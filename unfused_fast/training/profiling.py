"""`--profile`: where the time of some steps of training goes, operator by operator, as a trace and as a table."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from unfused_fast.console import console

WARM_UP, STEPS = 3, 10
"""Steps that are left out, and steps that are recorded. Ours: the first ones allocate, compile and fill caches."""
OPERATORS = 10
"""Lines of the table."""


class Profile:
    """Records STEPS steps after WARM_UP others, or what a shorter run has of them; nothing when it is not asked for.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            if not (self._folder / "operators.txt").exists():
                console.print(f"--profile: the run has no more than {WARM_UP} steps, so nothing was recorded")

    def step(self) -> None:
        """One step of training is done."""
        if self._profile is not None:
            self._profile.step()

    def part(self, name: str) -> torch.profiler.record_function | nullcontext[None]:
        """Gives what the block does a name in the trace."""
        return nullcontext() if self._profile is None else torch.profiler.record_function(name)

    def _write(self, recorded: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / "trace.json"))
        order = f"self_{'device' if self._cuda else 'cpu'}_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=OPERATORS, max_name_column_width=60)
        (self._folder / "operators.txt").write_text(table + "\n", encoding="utf-8")
        console.print(
            f"--profile: wrote {self._folder}/trace.json and operators.txt, the {OPERATORS} slowest operators"
        )
