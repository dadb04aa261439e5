"""Runs that are killed again and again end as the undisturbed one, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kill_run
import pytest


def kill(stage: str, kills: int, shards: Path, *more: str) -> None:
    if stage == "linear":  # twelve parts, some of them short
        more = ("--steps", "12", "--longest", "0.05")
    flags = ["--stage", stage, "--kills", str(kills), "--seed", "7", "--shards", str(shards), *more]
    done = subprocess.run(
        [sys.executable, str(Path(kill_run.__file__)), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout and "every run ended as the undisturbed one" in done.stdout


@pytest.mark.parametrize("stage", ["pretrain", "distill", "linear"])
def test_a_few_kills(tones: Path, stage: str) -> None:
    kill(stage, 3, tones)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_a_rank_killed_of_two(tones: Path, stage: str) -> None:
    kill(stage, 2, tones, "--ranks", "2")


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_a_rank_killed_of_two_ten_times(tones: Path, stage: str) -> None:
    kill(stage, 10, tones, "--ranks", "2")


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["pretrain", "distill", "linear"])
def test_twenty_five_kills(tones: Path, stage: str) -> None:
    kill(stage, 25, tones)
