"""Tests that wait for what a process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_for(done: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    """Until `done()`. Raises AssertionError, with what it said, when the process ends before, or after two minutes."""
    until = time.monotonic() + 120
    while not done():
        if started.poll() is not None or time.monotonic() > until:
            started.kill()
            raise AssertionError(started.communicate())
        time.sleep(0.1)
