"""benchmarks/ranks.py: rows of the same training on each number of processes."""

from __future__ import annotations

import csv
import importlib
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.soak
def test_rows_are_of_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("measure"), "RESULTS", tmp_path)
    shape = "--repeats 1 --epochs 2 --clips 32 --seconds 1 --width 2 --batch-size 16 --k 3 --device cpu --processes 1 2"
    monkeypatch.setattr(sys, "argv", ["ranks.py", *shape.split()])
    runpy.run_path(str(BENCHMARKS / "ranks.py"), run_name="__main__")
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["unit"], row["repeats"]) for row in rows] == [
        ("train pretrain", "clips/s", "1"),
        ("train pretrain", "clips/s", "1"),
        ("speed-up over processes=1", "x", "1"),
    ]
    one, two, ratio = rows
    settings = [dict(pair.split("=") for pair in row["settings"].split()) for row in rows]
    assert [found["processes"] for found in settings] == ["1", "2", "2"] and settings[0]["batch"] == "16"
    assert float(ratio["p50"]) == pytest.approx(float(two["p50"]) / float(one["p50"]), rel=1e-3)
    assert all(float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) and row["commit"] for row in rows)
