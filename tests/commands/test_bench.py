"""`unfused-fast bench`: the figures of each part, what a floor means, rows, comparison."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from method_kinds import DECARS, KINDS
from torch.utils.benchmark import Timer

from unfused_fast.commands.measure import machine, parts
from unfused_fast.commands.measure.estimate import hollow, step_cost
from unfused_fast.commands.measure.parts import PARTS, Bench, Measured, limit
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.errors import Interrupted
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options


@pytest.fixture(autouse=True)
def quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is called a few times instead of for half a second, and is small."""
    real, kmeans = Timer.blocked_autorange, parts.spherical_kmeans
    monkeypatch.setattr(Timer, "blocked_autorange", lambda timer, min_run_time: real(timer, min_run_time=1e-3))
    monkeypatch.setattr(
        parts, "spherical_kmeans", lambda points, *given, **named: kmeans(points[:999], *given, **named)
    )
    monkeypatch.setattr(machine, "matmul_rate", partial(machine.matmul_rate, size=256))
    monkeypatch.setattr(machine, "copy_rate", partial(machine.copy_rate, size=1 << 20))


def test_share_is_of_the_floors_speed_and_the_limit_is_the_largest_share() -> None:
    step, backward = Measured("step", "x", "clips/s", [20.0, 30.0, 40.0], 100.0), "share of backward"
    assert step.share == pytest.approx(0.3) and Measured("kmeans", "x", "ms", [40.0], 10.0).share == pytest.approx(0.25)
    rows = [step, Measured("epoch", "share of load", "%", [20.0]), Measured("epoch", backward, "%", [45.0])]
    assert limit(rows) == (
        "bottleneck: backward, 45 % of an epoch; the step runs at 30 % of what the matmul rate allows"
    )
    assert limit(rows[:1]) is None


def test_every_part_is_measured(cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--quick", "--set", "bank.dtype=bf16"]
    done = cli("bench", "all", tones, "--json", "--rows", tmp_path / "rows.csv", *flags)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {row["part"] for row in found["rows"]} == set(PARTS)
    assert found["limit"].startswith("bottleneck: ")
    for row in found["rows"]:
        assert row["p20"] <= row["p50"] <= row["p80"] and row["repeats"] >= 1
        assert row["share"] is None or math.isfinite(row["share"])
        assert row["clips"] == 60 and row["cores"] and row["commit"]
    assert "generation of 20,000 x 512 on disk, bf16" in [row["what"] for row in found["rows"]]
    shares = [row for row in found["rows"] if row["unit"] == "%"]
    assert len(shares) > 3 and all(row["what"].startswith("share of ") and row["p20"] >= 0 for row in shares)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])


def test_rows_are_appended_to_those_that_are_there(
    cli: Callable[..., Any], tiny: list[str], tones: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.touch()
    for _ in range(2):  # on a synthetic set
        assert cli("bench", "views", "--synthetic", 16, "--seconds", 1, "--quick", "--rows", rows, *tiny).code == 0
    with rows.open() as file:
        assert [(row["part"], row["clips"]) for row in csv.DictReader(file)] == [("views", "16")] * 2
    (tmp_path / "other.csv").write_text("what,unit\nx,y\n")
    for name in ("other.csv", "nothing/rows.csv", "."):
        done = cli("bench", "views", tones, "--rows", tmp_path / name, *tiny)
        assert done.code == 1 and "no rows can be appended" in done.error and "measuring" not in done.err
    assert "GB on disk are needed" in cli("bench", "views", "--synthetic", 10**9, *tiny).error


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), Interrupted("run: saved; continue with --resume")])
def test_a_stopped_bench_keeps_nothing_and_says_so(
    cli: Callable[..., Any], tones: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, stopped: BaseException
) -> None:
    def epoch(bench: Bench) -> None:
        raise stopped

    monkeypatch.setitem(parts.PARTS, "epoch", epoch)
    done = cli("bench", "epoch", tones, *tiny)
    assert (done.code, done.out) == (130, "") and done.err.splitlines() == [
        "bench: measuring epoch",
        "bench: stopped; nothing is kept",
    ]


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


@pytest.mark.parametrize("kind", [*KINDS, *DECARS])
def test_a_step_of_every_method_has_the_operations_that_a_plan_counts(
    tones: Path, tiny_any: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Bench, "rates", lambda _, run: [float(run() is None)])
    monkeypatch.setattr(Bench, "matmul_rate", 1e9)
    monkeypatch.setattr(Bench, "copy_rate", 1e9)
    method, values = {**KINDS, **DECARS}[kind]
    given = dict(item.split("=") for item in [*tiny_any, *values.split()] if "=" in item)
    config = with_values(preset("recommended", "pretrain", method), given)
    measured = Bench(open_shards(tones), config, Options(torch.device("cpu"), compile=False), quick=True)
    (views,), (step, _) = PARTS["views"](measured), PARTS["step"](measured)
    assert f"{measured.method.views} view" in views.what and step.floor is not None
    assert 1e9 / step.floor == pytest.approx(step_cost(hollow(config, 60))[0], rel=0.02)


@pytest.mark.parametrize(("values", "made"), [([], "1 view"), (["--set", "bank.view=separate"], "2 views")])
def test_where_training_streams_so_does_the_loader_as_many_views(
    cli: Callable[..., Any], tones: Path, tiny: list[str], values: list[str], made: str
) -> None:
    done = cli("bench", "loader", tones, "--quick", "--json", "--set", "data.store=stream", *values, *tiny)
    assert [row["what"] for row in json.loads(done.out)["rows"]] == [f"stream, {made}"]
    assert "training here streams, because data.store is stream" in done.err
