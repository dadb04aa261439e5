"""A comparison that several files of tests read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from outcomes import Cli, PackRows

from unfused_fast.shards.sources.row import SourceRow

FEW = ["--epochs", 1, "--set", "eval.epochs=5"]


@pytest.fixture(scope="session")
def emotions(tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train clips of `tone_rows` as a set named as one of the papers' tasks, without a test split."""
    rows = [replace(row, label=f"{row.label} or not") for row in tone_rows if row.split == "train"]
    return pack_rows(rows, tmp_path_factory.mktemp("sets") / "ic")


@pytest.fixture(scope="session")
def comparing(tones: Path, emotions: Path, tiny: list[str]) -> list[object]:
    """The command of `compared`, in which MoCo wants a longer queue than there are clips; without its --out."""
    failing = ["--methods", "simclr,moco,decar-v2", "--set", "method.queue=1000"]
    given = [tones, "--tasks", tones, "--tasks", emotions, "--holdout", 0.3, "--seeds", 2]
    return ["compare", *given, *FEW, *tiny, *failing]


@pytest.fixture(scope="session")
def compared(cli: Cli, comparing: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a comparison wrote; a test may add runs to it. Its runs.parquet of before is in the folder above too."""
    out = tmp_path_factory.mktemp("compare") / "out"
    done = cli(*comparing, "--out", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((out / "compare.json").read_text())
    shutil.copy(out / "runs.parquet", out.parent)
    return out
