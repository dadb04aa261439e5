"""Starts tests/support/ranks.py: the command line on several ranks."""

from __future__ import annotations

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
    """What tests/support/ranks.py gives."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(harness.__file__)), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))
