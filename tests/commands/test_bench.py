"""`unfused-fast bench`: the figures of each part, what a floor means, rows, comparison."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unfused_fast.commands import benchmarks as bench
from unfused_fast.commands import measuring
from unfused_fast.commands.benchmarks import PARTS, Bench, Measured, iteration_ms, limit
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.store import placed
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options


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
        "bottleneck: backward, 45 % of an epoch; the step runs at 30 % of what the matmul rate allows"
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
    absent = set(PARTS) - {row["part"] for row in found["rows"]}
    assert absent == ({"kmeans"} if "so none is measured" in done.err else set()), "a restless machine is told"
    assert found["limit"].startswith("bottleneck: ")
    for row in found["rows"]:
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert row["repeats"] >= (1 if row["what"].startswith("first pass") else 2)
        assert row["share"] is None or math.isfinite(row["share"])
        assert row["clips"] == 60 and row["cores"] and row["commit"]
    shares = [row for row in found["rows"] if row["unit"] == "%"]
    assert len(shares) > 3 and all(row["what"].startswith("share of ") and row["p20"] >= 0 for row in shares)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])
    assert not list(tones.parent.glob("unfused-bench-*"))


def test_a_file_that_takes_no_rows_is_refused_before_anything_is_measured(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PARTS", dict.fromkeys(PARTS, lambda _: pytest.fail("measured")))
    other, binary = tmp_path / "other.csv", tmp_path / "binary.csv"
    other.write_text("what,unit\nx,y\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, says in (
        (tmp_path / "nothing/rows.csv", f"{tmp_path / 'nothing'} is no folder"),
        (tmp_path, "it cannot be written to"),
        (other, "its header is 'what,unit', but rows of this version have 'part,what,unit,p20,"),
        (binary, "not a CSV file"),
    ):
        done = cli("bench", "views", tones, "--rows", path, *tiny)
        assert done.code == 1 and f"--rows {path}: " in done.error and says in done.error, done.err
    assert other.read_text() == "what,unit\nx,y\n"


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


def test_an_iteration_is_the_difference_of_runs() -> None:
    assert iteration_ms([1.0, 1.1], [1.6, 1.3], 3) == pytest.approx([100, 500 / 3])
    assert iteration_ms([1.0, 1.7], [1.6, 1.3], 3) is None, "no time is negative"


@pytest.mark.parametrize("store", ["stream", "mmap"])
def test_the_loader_is_measured_where_training_would_take_it_from(
    cli: Callable[..., Any], tones: Path, tiny: list[str], store: str
) -> None:
    done = cli("bench", "loader", tones, "--quick", "--json", "--set", f"data.store={store}", *tiny)
    assert done.code == 0, done.err
    measured = [row["what"] for row in json.loads(done.out)["rows"] if not row["what"].startswith("first pass")]
    assert measured == ["stream, two views"] + ["mmap, two views"] * (store == "mmap")
    assert ("training here streams, as data.store says" in done.err) == (store == "stream")


def test_the_first_pass_is_timed_once(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `placed` takes where no log-mels are kept; 60 clips of one length."""
    copied, taken = tmp_path / "tones", list[float]()
    shutil.copytree(tones, copied, ignore=shutil.ignore_patterns("*.cache"))

    def slow(*arguments: Any) -> Any:
        start = time.perf_counter()
        held = placed(*arguments)
        taken.append(time.perf_counter() - start)
        return held

    monkeypatch.setattr(bench, "placed", slow)
    flags = ["--quick", "--json", "--set", "data.store=mmap", *tiny]
    found = json.loads(cli("bench", "loader", copied, *flags).out)["rows"]
    (row,) = (row for row in found if row["what"].startswith("first pass"))
    seconds = open_shards(tones).clips_in("train").column("samples").to_numpy().mean() / 16000
    assert row["what"] == f"first pass over the audio, clips of {seconds:.2f} s" and row["unit"] == "clips/s"
    assert row["p50"] == pytest.approx(60 / taken[0], rel=0.05)
    again = cli("bench", "loader", copied, *flags)
    assert "first pass" not in again.out and "holds the log-mels" in again.err


def test_without_update_a_step_takes_the_same_network(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def compiled(network: torch.nn.Module, options: Options) -> Callable[..., Any]:
        def forward(crop: torch.Tensor) -> Any:
            calls.append(1)
            return network(crop)

        return forward

    def second(run: Callable[[], object], device: torch.device) -> float:
        run()
        return 1.0

    monkeypatch.setattr(bench, "compiled", compiled)
    monkeypatch.setattr(measuring, "seconds_of", second)
    config = with_values(Config(), {"model.channels": 4, "model.dim": 32, "model.proj_dim": 16, "train.batch_size": 4})
    rows = PARTS["step"](Bench(open_shards(tones), config, Options(torch.device("cpu")), quick=True))
    counts = list[int]()
    for _ in rows:
        counts.append(len(calls))
    assert counts == [8, 16], "two views; once before the clock and three times by it"


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
