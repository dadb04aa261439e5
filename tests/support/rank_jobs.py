"""Jobs of several ranks, run by ranks.py in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ranks as harness


def environment() -> dict[str, str]:
    """Of processes that tests start: they find what this one imports."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_jobs(jobs: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """What ranks.py gives."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(harness.__file__)), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def rank_process(launcher: int, rank: int) -> int:
    """The process of a rank that a launcher started."""
    return rank_processes(launcher)[rank]


def rank_processes(launcher: int) -> dict[int, int]:
    """Rank -> process, of those that a launcher started and that have not ended."""
    found = dict[int, int]()
    for child in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(item[5:]): child for item in variables if item.startswith(b"RANK=")}
    return found
