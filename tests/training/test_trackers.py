"""`--log-to`: what Weights & Biases and MLflow were told, by their own readers; what is missing or fails."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from outcomes import Cli, refused
from wandb.proto.wandb_internal_pb2 import Record

from unfused_fast.training.run_record import RunLog

CONFIG = {f"section.field{number}": number for number in range(150)}
DESCRIPTION = {"stage": "pretrain", "shards": "abc", "config": CONFIG}
BLOCK = 1 << 15


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def wandb_records(run: Path) -> list[Record]:
    """Of all files of W&B's runs, in the order in which they were written."""
    records = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        data, place, whole = file.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while place < len(data):  # LevelDB's log: blocks of 32 KiB; a piece has a CRC, a length and a kind before it
            if BLOCK - place % BLOCK < 7:
                place += BLOCK - place % BLOCK
                continue
            length, kind = struct.unpack_from("<HB", data, place + 4)
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                records.append(Record.FromString(whole))
                whole = b""
    return records


def told_wandb(run: Path) -> list[dict[str, Any]]:
    """The numbers of each epoch."""
    rows = [record.history.item for record in wandb_records(run) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def mlflow_run(place: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(place.as_uri())
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return client, run


def test_a_run_is_told_to_both(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ("--out", run, "--epochs", 2, *tiny, "--log-to", "mlflow,wandb", "--device", "cpu")
    done = cli("train", "pretrain", tones, *given)
    assert done.code == 0 and "not logged" not in done.err, done.err
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    recorded, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
    assert not (run / "tensorboard").exists()

    records = wandb_records(run)
    told = told_wandb(run)
    assert [row["_step"] for row in told] == [1, 2] and [row["loss"] for row in told] == [row["loss"] for row in lines]
    (begun,) = [record.run for record in records if record.HasField("run")][:1]
    config = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.display_name, begun.job_type) == ("unfused-fast", "run", "pretrain")
    assert {name: config[name] for name in recorded["config"]} == recorded["config"]
    summary = [item for record in records if record.HasField("summary") for item in record.summary.update]
    values = {item.key or item.nested_key[0]: item.value_json for item in summary}
    assert json.loads(values["seconds"]) == result["seconds"]

    client, found = mlflow_run(run / "mlruns")
    losses = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [(row["epoch"], row["loss"]) for row in lines]
    assert found.data.params["cluster.k"] == str(recorded["config"]["cluster.k"]) and found.info.status == "FINISHED"
    assert found.data.metrics["result.loss"] == result["loss"]


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    for epochs, result in (((1, 2), None), ((3,), {"loss": 0.5, "run": "a"})):
        log = RunLog(tmp_path, ("mlflow", "wandb"))
        log.open(DESCRIPTION)
        for epoch in epochs:
            log.append(epoch, {"loss": 1 / epoch, "parts": {"load": 0.1}})
        log.close(result)
    client, found = mlflow_run(tmp_path / "mlruns")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert len(found.data.params) == 152 and found.info.status == "FINISHED"
    assert [row["loss"] for row in told_wandb(tmp_path)] == [1.0, 0.5, 1 / 3]
    ids = {record.run.run_id for record in wandb_records(tmp_path) if record.HasField("run")}
    assert ids == {json.loads((tmp_path / "trackers.json").read_text())["wandb"]}


def test_training_goes_on_where_a_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise MlflowException("503 of a proxy\nsecond line")

    log = RunLog(tmp_path, ("tensorboard", "mlflow"))
    log.open(DESCRIPTION)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    log.append(1, {"loss": 1.0})
    log.close({"loss": 1.0})
    said = capsys.readouterr().err
    assert "not logged, training continues" in said and "503 of a proxy" in said and "second line" not in said
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"epoch": 1, "loss": 1.0}
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("wandb", ["--log-to wandb needs Weights & Biases, which is not installed", "pip install '.[wandb]'"]),
        ("tensorboard,mlflow", ["--log-to mlflow needs MLflow, which is not installed", "pip install '.[mlflow]'"]),
        ("tensorboard,comet", ["'comet' is no tracker", "tensorboard, wandb, mlflow"]),
        ("", ["'' is no tracker"]),
    ],
)
def test_what_is_not_there_is_said_first(
    cli: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, says: list[str]
) -> None:
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(cli("train", "pretrain", tones, "--out", tmp_path / "run", "--log-to", names), *says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["sftp://nowhere", f"{__file__}/runs"])
def test_a_tracker_that_cannot_begin_ends_the_command(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", "--epochs", 1, *tiny, "--log-to", "mlflow")
    refused(done, "--log-to mlflow: cannot begin", "MLFLOW_TRACKING_URI")
