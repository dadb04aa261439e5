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

from unfused_fast.commands.measure.machine import spread
from unfused_fast.commands.measure.parts import PARTS, Bench, Measured, limit
from unfused_fast.config.fields import Config
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options


def test_share_is_of_the_floors_speed() -> None:
    assert Measured("step", "x", "clips/s", [40.0, 50.0, 60.0], 200.0).share == pytest.approx(0.25)
    assert Measured("kmeans", "x", "ms", [40.0], 10.0).share == pytest.approx(0.25)
    assert Measured("epoch", "x", "clips/s", [1.0]).share is None
    assert spread(list(range(1, 12))) == (3.0, 6.0, 9.0)


def test_the_limit_is_the_largest_share() -> None:
    rows = [
        Measured("step", "x", "clips/s", [30.0], 100.0),
        Measured("epoch", "share of load", "%", [20.0]),
        Measured("epoch", "share of backward", "%", [45.0]),
    ]
    assert limit(rows) == (
        "bottleneck: backward, 45 % of an epoch; the step runs at 30 % of what the matmul rate allows"
    )
    assert limit(rows[:1]) is None


def test_every_part_is_measured(cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--quick"]
    done = cli("bench", "all", tones, "--json", "--rows", tmp_path / "rows.csv", *flags)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    absent = set(PARTS) - {row["part"] for row in found["rows"]}
    assert absent == ({"kmeans"} if "so none is measured" in done.err else set()), "a restless machine is told"
    assert found["limit"].startswith("bottleneck: ")
    for row in found["rows"]:
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert row["repeats"] >= 1
        assert row["share"] is None or math.isfinite(row["share"])
        assert row["clips"] == 60 and row["cores"] and row["commit"]
    shares = [row for row in found["rows"] if row["unit"] == "%"]
    assert len(shares) > 3 and all(row["what"].startswith("share of ") and row["p20"] >= 0 for row in shares)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])
    assert not list(tones.parent.glob("unfused-bench-*"))


def test_rows_are_appended_to_those_that_are_there(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.touch()
    for _ in range(2):
        assert cli("bench", "views", tones, "--quick", "--rows", rows, *tiny).code == 0
    with rows.open() as file:
        found = list(csv.DictReader(file))
    assert [row["part"] for row in found] == ["views", "views"] and float(found[1]["p50"]) > 0
    (tmp_path / "other.csv").write_text("what,unit\nx,y\n")
    for name in ("other.csv", "nothing/rows.csv", "."):
        done = cli("bench", "views", tones, "--rows", tmp_path / name, *tiny)
        assert done.code == 1 and "no rows can be appended" in done.error and "measuring" not in done.err


def test_the_bank_is_measured_in_the_type_of_the_run(cli: Callable[..., Any], tones: Path, tiny: list[str]) -> None:
    done = cli("bench", "bank", tones, "--quick", "--json", "--set", "bank.dtype=bf16", *tiny)
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["what"] == "generation of 20,000 x 512 on disk, bf16"


def test_a_part_of_some_epochs_counts_nothing_in_the_others(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrain(config: Any, shards: Any, out: Path, options: Any) -> None:
        out.mkdir()
        parts = [{"load": 1.0}, {"load": 1.0}, {"load": 2.0, "cluster": 1.0}]
        rows = [{"epoch_seconds": 4.0, "clips_per_second": 9.0, "parts": part} for part in parts]
        (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr("unfused_fast.stages.pretrain", pretrain)
    measured = Bench(open_shards(tones), Config(), Options(torch.device("cpu")), quick=True)
    assert {row.what: row.values for row in PARTS["epoch"](measured) if row.unit == "%"} == {
        "share of load": [25.0, 50.0],
        "share of cluster": [0.0, 25.0],
    }


@pytest.mark.parametrize("store", ["stream", "mmap"])
def test_the_loader_is_measured_where_training_would_take_it_from(
    cli: Callable[..., Any], tones: Path, tiny: list[str], store: str
) -> None:
    done = cli("bench", "loader", tones, "--quick", "--json", "--set", f"data.store={store}", *tiny)
    assert done.code == 0, done.err
    measured = [row["what"] for row in json.loads(done.out)["rows"] if not row["what"].startswith("first pass")]
    assert measured == ["stream, two views"] + ["mmap, two views"] * (store == "mmap")
    assert ("training here streams, as data.store is stream" in done.err) == (store == "stream")


def test_a_synthetic_set_of_any_size(cli: Callable[..., Any], tiny: list[str]) -> None:
    done = cli("bench", "views", "--synthetic", 16, "--seconds", 1, "--quick", "--json", *tiny)
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["clips"] == 16
    assert "GB on disk are needed" in cli("bench", "views", "--synthetic", 10**9, *tiny).error
