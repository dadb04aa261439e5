"""Jobs of several ranks, run by ranks.py in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
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


@functools.cache
def _harness() -> subprocess.Popen[str]:
    """ranks.py, which imports once what all jobs need, and ends with this process."""
    command = [sys.executable, str(harness.__file__)]
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    atexit.register(started.communicate)
    return started


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What ranks.py gives."""
    started = _harness()
    assert started.stdin is not None and started.stdout is not None
    request = {"jobs": jobs, "environment": environment(), "folder": str(Path.cwd())}
    print(json.dumps(request), file=started.stdin, flush=True)
    line = started.stdout.readline()
    assert line, f"ranks.py ended with {started.wait()}"
    answer = json.loads(line)
    assert isinstance(answer, list), answer
    return answer


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
