"""What every benchmark script shares: repeated timing, and the CSV that rows are appended to."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from unfused_fast.commands.measure.machine import circumstances, spread
from unfused_fast.evaluation.report import terminal_table

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("what", "unit", "p20", "p50", "p80", "repeats", "settings", "device", "cores", "versions", "commit", "date")


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, with the device's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def repeat(run: Callable[[], float], repeats: int, warm_up: int = 1) -> list[float]:
    """What `run` returns (a rate or a time), after warm-up runs that do not count."""
    for _ in range(warm_up):
        run()
    return [run() for _ in range(repeats)]


def record(name: str, what: str, unit: str, values: list[float], device: torch.device, **settings: object) -> None:
    """Appends one row to results/NAME.csv and prints it."""
    row = {
        "what": what,
        "unit": unit,
        **{name: f"{value:.5g}" for name, value in spread(values)._asdict().items()},
        "repeats": len(values),
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
        **circumstances(device),
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
