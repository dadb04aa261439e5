"""A bank whose writer is killed again and again is always whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import kill_bank


def test_thirty_kills() -> None:
    command = [sys.executable, str(Path(kill_bank.__file__)), "--kills", "30", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 kills" in done.stdout and "every bank whole" in done.stdout
    (being_written,) = re.findall(r"(\d+) being written", done.stdout)
    assert int(being_written) >= 5, f"most kills have to come while a generation is written: {done.stdout}"
