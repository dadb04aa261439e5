"""Runs that are killed again and again end as the undisturbed one, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from method_kinds import DECARS, KINDS
from rank_jobs import run_jobs


@pytest.mark.parametrize(
    ("stage", "kills", "ranks"),
    [
        ("distill", 3, 1),
        ("linear", 3, 1),
        ("pretrain", 2, 2),
        ("delores-m", 2, 1),
        pytest.param("pretrain", 25, 1, marks=pytest.mark.soak),
        pytest.param("distill", 25, 1, marks=pytest.mark.soak),
        pytest.param("linear", 25, 1, marks=pytest.mark.soak),
        pytest.param("pretrain", 10, 2, marks=pytest.mark.soak),
        pytest.param("distill", 10, 2, marks=pytest.mark.soak),
        pytest.param("methods", 10, 1, marks=pytest.mark.soak),
    ],
)
def test_kills(tones: Path, stage: str, kills: int, ranks: int) -> None:
    """Of the process, or of one of two. Of a method, or all: by SIGKILL, then by SIGTERM, within an epoch."""
    flags = ["--stage", stage, "--kills", str(kills), "--ranks", str(ranks), "--seed", "7", "--shards", str(tones)]
    if stage == "linear":  # twelve parts, some of them short
        flags += ["--steps", "12", "--longest", "0.05"]
    if stage in ("methods", "delores-m"):  # of three steps an epoch
        flags += ["--least", "1", "--steps", "2", "--longest", "0.03"]
    ((done,),) = run_jobs([{"ranks": 1, "usual": True, "script": ["kill_run", *flags]}])
    assert done["code"] == 0, done
    total = kills * len(KINDS | DECARS) if stage == "methods" else kills
    assert f"{total} kills" in done["said"] and "every run ended as the undisturbed one" in done["said"]
