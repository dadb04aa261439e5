"""The store of runs: what result files say, after a kill too; a run that fails, one that is paused and given up."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from outcomes import Cli
from recipes import trained

from unfused_fast.config.presets import preset, with_values
from unfused_fast.errors import UserError
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.evaluation.run_store import SCHEMA, read_runs, write_runs
from unfused_fast.evaluation.scores import score_once
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options

VALUES = ["train.epochs=3", "eval.epochs=3", "data.crop_seconds=0.3"]


def _rows(out: Path, **wanted: Any) -> list[dict[str, Any]]:
    found = [row for row in read_runs([out]) if all(row[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda row: row["seed"])


@pytest.fixture
def pool(tmp_path: Path) -> RunPool:
    return RunPool(tmp_path / "runs", Options(torch.device("cpu")))


@pytest.fixture
def config(tiny: list[str]) -> Any:
    values = dict(text.split("=") for text in [*tiny[3::2], *VALUES])
    return lambda stage: with_values(preset("recommended", stage), values)


def test_compare_writes_what_its_files_say(compared: Path) -> None:
    out, store = compared, compared.parent
    assert pq.read_schema(out / "runs.parquet") == SCHEMA
    rows = {row["encoder"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}
    for name in ("logmel", "random", "simclr"):
        for split in ("valid", "test"):
            found = [row["score"] for row in _rows(store, method=name, split=split, task="tones", state="done")]
            assert found == rows[name]["tasks"]["tones"][split]["values"], name
    simclr = _rows(store, method="simclr", split="test", task="tones", seed=1)[0]
    log = [json.loads(line) for line in (out / "runs" / simclr["run"] / "log.jsonl").read_text().splitlines()]
    assert (simclr["set"], simclr["clips_seen"], simclr["epoch"], simclr["head"]) == ("tones", 60, 1, "linear")
    assert simclr["seconds"] == pytest.approx(sum(line["epoch_seconds"] for line in log), abs=0.006)
    settings = json.loads(simclr["config"])  # also those that are `recommended`, but for the seed
    assert settings["model.channels"] == 4 and settings["loss.temperature"] == 0.2 and "train.seed" not in settings
    assert simclr["commit"] and json.loads(simclr["versions"])["torch"] == importlib.metadata.version("torch")
    failed = _rows(store, method="moco")
    assert [row["seed"] for row in failed] == [0, 1] and {row["state"] for row in failed} == {"failed"}
    assert all("method.queue = 1000" in row["reason"] and row["score"] is None for row in failed)
    assert json.loads(failed[0]["config"])["method.queue"] == 1000


def test_ablate_writes_what_its_files_say(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ["--epochs", 1, "--set", "eval.epochs=3", *tiny]
    done = cli("ablate", tones, "--out", out, "--vary", "distill.alpha=0.3", "--stage", "distill", *flags)
    assert done.code == 0, done.err
    (cell,) = json.loads((out / "ablation.json").read_text())["rows"]
    (row,) = _rows(out, stage="distill", split="valid")
    assert [row["score"]] == cell["valid"]["values"] and row["method"] == "decar-v2"
    assert json.loads(row["config"])["distill.alpha"] == 0.3 and row["teacher"].startswith("pretrain-")
    assert not _rows(out, stage="linear"), "the scores of heads are their encoder's"


def test_a_run_is_paused_scored_given_up_and_continued(pool: RunPool, config: Any, tones: Path, tmp_path: Path) -> None:
    shards, plain = open_shards(tones), config("pretrain")
    whole = RunPool(tmp_path / "whole", pool.options).pretrain(plain, shards)
    paused = pool.pretrain(plain, shards, until=1)
    assert paused.result == {} and paused.digest == whole.digest
    assert pool.pretrain(plain, shards, until=1).path == paused.path, "standing there, it does not go on"
    score_once(tmp_path, config("linear"), shards, paused, pool.options, head="knn", epoch=1)
    pool.give_up(paused, "below the median")
    write_runs(pool.directory)
    (row,) = _rows(tmp_path)
    assert (row["state"], row["reason"], row["epoch"], row["clips_seen"]) == ("pruned", "below the median", 1, 60)
    assert (row["head"], row["split"], row["task"]) == ("knn", "valid", "tones")
    assert pool.pretrain(plain, shards).result["loss"] == whole.result["loss"], "continued as if never paused"
    best = score_once(tmp_path, config("linear"), shards, paused, pool.options, test=True)
    write_runs(pool.directory)
    facts = "reason", "epoch", "clips_seen", "head", "split"
    assert {tuple(row[fact] for fact in facts) for row in _rows(tmp_path, state="done")} == {
        (None, 1, 60, "knn", "valid"),
        (None, 3, 180, "linear", "valid"),
        (None, 3, 180, "linear", "test"),
    }
    assert len(_rows(tmp_path)) == 3
    assert {row["split"]: row["score"] for row in _rows(tmp_path, head="linear")} == best
    with pytest.raises(UserError, match="other settings of the heads"):
        score_once(tmp_path, with_values(config("linear"), {"eval.epochs": 9}), shards, paused, pool.options)


def test_damage_is_named(pool: RunPool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give folders that compare"):
        read_runs([tmp_path])
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/a-0.json").write_text('{"valid": 0.5}')
    (tmp_path / "tasks/tones/random-0").mkdir(parents=True)
    (tmp_path / "tasks/tones/random-0/evaluation.json").write_text("{}")
    rows = write_runs(pool.directory)
    assert [row["run"] for row in rows] == ["scores/a-0.json", "tasks/tones/random-0/evaluation.json"]
    for row in rows:
        assert row["state"] == "damaged" and f"{tmp_path / row['run']}: cannot be read" in row["reason"]
    assert trained(rows) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".json", "{}"),
        (".json", '{"stage": "pretrain", "config": {}}'),
        (".json", '{"stage": "pretrain", "config": null}'),
        (".json", '{"stage": "pretrain", "config": {"train.seed": 0}, "clips": "many"}'),
        ("/log.jsonl", '{"loss": 1}'),
        ("/log.jsonl", '{"epoch": "first", "epoch_seconds": 1}'),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = tmp_path / "runs" / "pretrain-0"
    run.mkdir(parents=True)
    whole = '{"stage": "pretrain", "config": {"train.seed": 0, "method.name": "byol"}, "clips": 3}'
    run.with_name("pretrain-0.json").write_text(whole)
    (run / "log.jsonl").write_bytes(b'{"epoch": 1, "epoch_seconds": 2}\n[1]\n{"epoch": 2, "ep\xff')
    (row,) = write_runs(run.parent)
    assert (row["method"], row["epoch"], row["clips_seen"], row["seconds"]) == ("byol", 1, 3, 2.0)
    Path(f"{run}{name}").write_text(text)
    (row,) = write_runs(run.parent)
    assert (row["run"], row["state"]) == ("pretrain-0", "damaged")
    assert "delete it and pretrain-0.json to run it again" in row["reason"]
