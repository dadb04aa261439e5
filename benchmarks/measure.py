"""What every benchmark shares: repeated timing, a row with its circumstances, and the CSV it is appended to."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from unfused_fast import __version__
from unfused_fast.report import terminal_table

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("what", "unit", "p20", "p50", "p80", "repeats", "settings", "device", "cores", "versions", "commit", "date")


def repeat(run: Callable[[], float], repeats: int, warm_up: int = 1) -> list[float]:
    """What `run` returns (a rate or a time), after warm-up runs that do not count."""
    for _ in range(warm_up):
        run()
    return [run() for _ in range(repeats)]


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, with the device's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def record(name: str, what: str, unit: str, values: list[float], device: torch.device, **settings: object) -> None:
    """Appends one row to results/NAME.csv and prints it."""
    p20, p50, p80 = statistics.quantiles(values, n=10, method="inclusive")[1::3] if len(values) > 1 else [values[0]] * 3
    row = {
        "what": what,
        "unit": unit,
        "p20": f"{p20:.5g}",
        "p50": f"{p50:.5g}",
        "p80": f"{p80:.5g}",
        "repeats": len(values),
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "versions": f"unfused-fast {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    shown = ["what", "unit", "p20", "p50", "p80", "repeats", "settings"]
    Console(width=160 if not sys.stdout.isatty() else None).print(
        terminal_table(name, shown, [[str(row[column]) for column in shown]])
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
