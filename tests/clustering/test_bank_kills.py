"""A bank whose writer is killed again and again is always whole. That some kills come in the middle of a save, and that
epochs go on, is part of the script's exit code.
"""

import os
import subprocess
import sys
from pathlib import Path

import kill_bank
import pytest


@pytest.mark.slow
def test_thirty_kills() -> None:
    command = [sys.executable, str(Path(kill_bank.__file__)), "--kills", "30", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 kills" in done.stdout and "every bank whole" in done.stdout
