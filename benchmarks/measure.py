"""What the benchmark scripts share: arguments, repeated timing, and the CSV that rows are appended to."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console

from unfused_fast.commands.measure.machine import append_rows, circumstances, spread
from unfused_fast.console import terminal_table
from unfused_fast.shards.sets.shard_files import replace_file

RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parent / "results"))
"""Where rows are appended; gpu_all.sh sets another folder for each run."""
COLUMNS = ("what", "unit", "p20", "p50", "p80", "repeats", "settings", "device", "cores", "versions", "commit", "date")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, with the device's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def pairs_of(first: Callable[[], float], second: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """What both return (a rate or a time), in turn, so that each pair compares neighbours in time; after one run of
    each that does not count.
    """
    measured = [(first(), second()) for _ in range(repeats + 1)][1:]
    return [one for one, _ in measured], [other for _, other in measured]


def peak_megabytes(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Runs a program; the most memory that it and its processes hold at one time, the sum of their proportional set
    sizes, sampled ten times a second.
    """
    return max(sum(sizes.values()) for sizes in _sampled(command, "smaps_rollup", "Pss", environment)) / 1e6


def peaks_of_processes(command: Sequence[str], count: int) -> list[float]:
    """Runs a program; the peak resident memory, in bytes, of each of the `count` of its processes with the most."""
    peaks = dict[int, int]()
    for sizes in _sampled(command, "status", "VmHWM"):  # the kernel's peak so far; 0 of a process that has ended
        peaks |= {member: max(size, peaks.get(member, 0)) for member, size in sizes.items()}
    return sorted(map(float, peaks.values()))[-count:]


def _sampled(
    command: Sequence[str], file: str, entry: str, environment: Mapping[str, str] | None = None
) -> Iterator[dict[int, int]]:
    """Runs a program; ten times a second the bytes that a file of /proc gives for it and each of its processes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None:
        parents = dict[int, int]()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(") ")[2].split()[1])
        family, before = {process.pid}, 0
        while len(family) > before:
            before = len(family)
            family |= {child for child, parent in parents.items() if parent in family}
        sizes = dict[int, int]()
        for member in family:
            with suppress(OSError):
                lines = Path(f"/proc/{member}/{file}").read_text().splitlines()
                sizes[member] = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))
        yield sizes
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def record(name: str, what: str, unit: str, values: list[float], device: torch.device, **settings: object) -> None:
    """Appends one row to results/NAME.csv and prints it."""
    row = {
        "what": what,
        "unit": unit,
        **{name: f"{value:.5g}" for name, value in spread(values)._asdict().items()},
        "repeats": str(len(values)),
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
    }
    append_rows(RESULTS / f"{name}.csv", COLUMNS, [{**row, **circumstances(device)}])
    Console(width=160 if not sys.stdout.isatty() else None).print(terminal_table("", [*row], [[*row.values()]]))


def write_part(page: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of `name`, a script: each replaces its own part of the page; a page without them
    gets the part at its end.
    """
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    whole = page.read_text() if page.exists() else ""
    before, found, rest = whole.partition(begin)
    after = rest.partition(end)[2] if found else ""
    replace_file(page, f"{before}{begin}{text}{end}{after}".encode())
