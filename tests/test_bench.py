"""`unfused-fast bench`: the figures of each part, what a floor means, rows, comparison."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unfused_fast import measuring
from unfused_fast.bench import PARTS, Measured, limit


def test_share_is_of_the_floors_speed() -> None:
    assert Measured("step", "x", "clips/s", [40.0, 50.0, 60.0], 200.0).share == pytest.approx(0.25)
    assert Measured("kmeans", "x", "ms", [40.0], 10.0).share == pytest.approx(0.25)
    assert Measured("epoch", "x", "clips/s", [1.0]).share is None
    assert measuring.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == (3.0, 6.0, 9.0)


def test_the_limit_is_the_largest_share() -> None:
    rows = [
        Measured("step", "x", "clips/s", [30.0], 100.0),
        Measured("epoch", "share of load", "%", [20.0]),
        Measured("epoch", "share of backward", "%", [45.0]),
    ]
    assert limit(rows) == (
        "what limits you here: backward, 45 % of an epoch; the step runs at 30 % of what the matmul rate allows"
    )
    assert limit(rows[:1]) is None


def test_rates_are_those_of_real_work() -> None:
    """Nothing but their size is known of a machine."""
    device = torch.device("cpu")
    assert 1e8 < measuring.copy_rate(device, 1 << 24) < 1e13
    assert 1e8 < measuring.matmul_rate(device, torch.float32, 256) < 1e16


def test_every_part_is_measured(cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--quick"]
    done = cli("bench", "all", tones, "--json", "--rows", tmp_path / "rows.csv", *flags)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {row["part"] for row in found["rows"]} == set(PARTS)
    assert found["limit"].startswith("what limits you here: ")
    for row in found["rows"]:
        assert row["p20"] <= row["p50"] <= row["p80"] and row["repeats"] >= 2
        assert row["share"] is None or math.isfinite(row["share"])
        assert row["clips"] == 60 and row["cores"] and row["commit"]
    shares = [row["p50"] for row in found["rows"] if row["unit"] == "%"]
    assert 50 < sum(shares) < 110
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])
    assert not list(tones.parent.glob("unfused-bench-*"))


@pytest.mark.parametrize("store", ["stream", "mmap"])
def test_the_loader_is_measured_where_training_would_take_it_from(
    cli: Callable[..., Any], tones: Path, tiny: list[str], store: str
) -> None:
    done = cli("bench", "loader", tones, "--quick", "--json", "--set", f"data.store={store}", *tiny)
    assert done.code == 0, done.err
    measured = [row["what"] for row in json.loads(done.out)["rows"]]
    assert measured == ["stream, two views"] + ["mmap, two views"] * (store == "mmap")
    assert ("training here streams, as data.store says" in done.err) == (store == "stream")


def test_two_benches_side_by_side(cli: Callable[..., Any], tmp_path: Path) -> None:
    def write(name: str, rates: dict[str, float]) -> Path:
        rows = [Measured("step", what, "clips/s", [rate]).as_json() for what, rate in rates.items()]
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
        return tmp_path / name

    first, second = write("a.json", {"x": 100.0, "y": 1.0}), write("b.json", {"x": 250.0, "z": 1.0})
    done = cli("bench", "--compare", first, second, "--json")
    assert done.code == 0, done.err
    assert [(row["what"], row["ratio"]) for row in json.loads(done.out)["rows"]] == [("x", 2.5)]
    assert "2.5" in cli("bench", "--compare", first, second).out
    assert "no part was measured in both" in cli("bench", "--compare", first, write("c.json", {"w": 1.0})).error
    (tmp_path / "d.json").write_text("[]")
    assert "no rows of a bench in it" in cli("bench", "--compare", first, tmp_path / "d.json").error


def test_a_synthetic_set_of_any_size(cli: Callable[..., Any], tiny: list[str]) -> None:
    done = cli("bench", "views", "--synthetic", 16, "--seconds", 1, "--quick", "--json", *tiny)
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["clips"] == 16
    assert "GB on disk are needed" in cli("bench", "views", "--synthetic", 10**9, *tiny).error
