"""Jobs of several ranks, run by ranks.py in a process of its own, the same for all tests of this one."""

from __future__ import annotations

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


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What ranks.py answers."""
    process = _ranks()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(jobs) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "ranks.py ended; its traceback is in the standard error of the tests"
    return list(json.loads(answer))


@functools.cache
def _ranks() -> subprocess.Popen[str]:
    """It ends with this process, when its input does."""
    command = [sys.executable, harness.__file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())


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
