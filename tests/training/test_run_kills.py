"""Runs that are killed again and again end as the undisturbed one, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kill_run
import pytest
from method_kinds import DECARS, KINDS


@pytest.mark.parametrize(
    ("stage", "kills", "ranks"),
    [
        ("distill", 3, 1),
        ("linear", 3, 1),
        ("pretrain", 2, 2),
        ("methods", 2, 1),
        pytest.param("pretrain", 25, 1, marks=pytest.mark.soak),
        pytest.param("distill", 25, 1, marks=pytest.mark.soak),
        pytest.param("linear", 25, 1, marks=pytest.mark.soak),
        pytest.param("pretrain", 10, 2, marks=pytest.mark.soak),
        pytest.param("distill", 10, 2, marks=pytest.mark.soak),
        pytest.param("methods", 10, 1, marks=pytest.mark.soak),
    ],
)
def test_kills(tones: Path, stage: str, kills: int, ranks: int) -> None:
    """Of the process, or of one of two. Of every method: by SIGKILL, then by SIGTERM, within an epoch."""
    flags = ["--stage", stage, "--kills", str(kills), "--ranks", str(ranks), "--seed", "7", "--shards", str(tones)]
    if stage == "linear":  # twelve parts, some of them short
        flags += ["--steps", "12", "--longest", "0.05"]
    if stage == "methods":  # of three steps an epoch
        flags += ["--least", "1", "--steps", "2", "--longest", "0.03"]
    done = subprocess.run(
        [sys.executable, str(Path(kill_run.__file__)), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = kills * len(KINDS | DECARS) if stage == "methods" else kills
    assert f"{total} kills" in done.stdout and "every run ended as the undisturbed one" in done.stdout
