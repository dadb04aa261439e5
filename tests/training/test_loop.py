"""Runs that are stopped within an epoch go on there, and end as if nothing had happened, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from method_kinds import sets
from safetensors.torch import load_file, save_file
from same_runs import assert_same_run, log_of
from stopping import signalled_after, signalled_after_question, stopped_after

from unfused_fast.config.presets import preset, with_values
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.errors import UserError
from unfused_fast.methods.deep_clustering import DeepClustering
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options, SaveEvery, parse_save_every
from unfused_fast.training.saves import Saves

Cli = Callable[..., Any]
DECAR_V1 = "model.encoder=audiontt data.crop_seconds=0.95 cluster.pca_dim=8"
MUON = "optim.name=muon optim.lr=0.01"
BESIDE = "loss.instance=barlow views.local=1 views.same_crop=false train.accumulate=2"
KINDS = {
    "pretrain": ("pretrain", ["--data", "resident"]),
    "pretrain from the shards": ("pretrain", ["--data", "stream"]),
    "pretrain in bf16 by adamw": ("pretrain", sets("bank.dtype=bf16 optim.name=adamw")),
    "pretrain by lars, one view": ("pretrain", sets("optim.name=lars bank.view=training")),
    "pretrain by muon, a view for the bank": ("pretrain", sets(f"{MUON} bank.view=separate")),
    "pretrain beside Barlow Twins, three crops, in parts": ("pretrain", sets(BESIDE)),
    "a local view and a follower": ("pretrain", sets("views.local=1 bank.encoder=follower method.ema=0.9")),
    "decar-v1": ("pretrain", ["--preset", "decar-v1", *sets(f"{DECAR_V1} cluster.algo=pca_kmeans")]),
    "decar-v1 by pic": ("pretrain", ["--preset", "decar-v1", *sets(f"{DECAR_V1} cluster.algo=pic")]),
    "distill": ("distill", ["--data", "stream", *sets(MUON)]),
}
"""Name -> stage and flags. Three steps an epoch and twelve clips more."""


@pytest.fixture
def train(cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path) -> Cli:
    """`train(kind, name, ...)`: three epochs into a directory of that name."""

    def run(kind: str, name: str, *flags: object) -> Any:
        stage, more = KINDS[kind]
        teacher = ["--teacher", pretrained] if stage == "distill" else []
        return cli("train", stage, tones, *teacher, "--out", tmp_path / name, "--epochs", 3, *tiny, *more, *flags)

    return run


@pytest.fixture(scope="module")
def stopped_run(cli: Cli, tones: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of kind pretrain that was stopped after batch 2 of epoch 2: not to be written to."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with signalled_after(5):
        assert cli("train", "pretrain", tones, "--out", out, "--epochs", 3, *tiny, *KINDS["pretrain"][1]).code == 130
    return out


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of it, which `train("pretrain", "run", "--resume")` continues."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def positions(run: Path) -> list[tuple[int, int]]:
    """(epochs done, batches of the next) of the checkpoints."""
    states = [json.loads(path.read_text()) for path in (run / "checkpoints").glob("*.json")]
    return sorted((state["epoch"], state["batch"]) for state in states)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_within_epochs_ends_as_the_undisturbed_one(train: Cli, tmp_path: Path, kind: str) -> None:
    stops = [(1, signal.SIGTERM, (0, 1)), (4, signal.SIGUSR1, (1, 2)), (2, signal.SIGINT, (2, 1))]
    stops, epochs = (stops, 3) if kind == "pretrain" else (stops[:2], 2)
    assert train(kind, "whole", "--epochs", epochs).code == 0
    parts = tmp_path / "parts"
    for steps, number, (done, batch) in stops:
        with signalled_after(steps, number):
            stopped = train(kind, "parts", "--epochs", epochs, *(["--resume"] if done else []))
        assert stopped.code == 130 and "Traceback" not in stopped.err, stopped.err
        assert positions(parts)[-1] == (done, batch)
        said = f"stopped after batch {batch} of epoch {done + 1}, saved; continue with --resume"
        assert stopped.err.splitlines()[-1] == f"{parts}: {said}"
        assert len(log_of(parts)) == done if done else not (parts / "log.jsonl").exists()
    resumed = train(kind, "parts", "--epochs", epochs, "--resume")
    assert resumed.code == 0 and f"resuming after batch {batch} of epoch {done + 1}" in resumed.err, resumed.err
    assert_same_run(parts, tmp_path / "whole")


@pytest.mark.parametrize("kind", ["pretrain", "decar-v1"])
def test_a_stop_while_the_bank_is_filled_loses_no_epoch(
    train: Cli, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pass before the second epoch, where there is one; the end of the first epoch was not to be saved."""
    assert train(kind, "whole", "--save-every", "3epochs").code == 0
    real, passes = DeepClustering._write_bank, 0

    def pressed(method: Any, *batch: Any) -> None:
        nonlocal passes
        real(method, *batch)
        passes += 1
        if passes == 6:  # of four batches each
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DeepClustering, "_write_bank", pressed)
        stopped = train(kind, "parts", "--save-every", "3epochs")
    assert stopped.code == 130, stopped.err
    assert "stopped after epoch 1, saved" in stopped.err or kind == "pretrain"
    assert train(kind, "parts", "--save-every", "3epochs", "--resume").code == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("question", [2, 7, 10])
def test_a_signal_that_comes_while_it_is_asked_for_one(train: Cli, tmp_path: Path, question: int) -> None:
    """In the pass that fills the bank, before a step, and at the end of an epoch: it is answered the next time."""
    with signalled_after_question(question):
        stopped = train("pretrain", "run")
    assert stopped.code == 130 and "stopped " in stopped.err, stopped.err


def test_saves_by_steps_and_by_time(train: Cli, tmp_path: Path) -> None:
    with stopped_after(2):
        assert train("pretrain", "steps", "--save-every", "2steps").code == 130
    assert positions(tmp_path / "steps") == [(1, 3), (2, 0)], "after six steps, the batch without a step still to come"
    with stopped_after(1):
        assert train("distill", "time", "--save-every", "1s").code == 130
    assert positions(tmp_path / "time")[-1] == (1, 0)
    with stopped_after(2):
        assert train("pretrain", "epochs", "--save-every", "2epochs").code == 130
    assert positions(tmp_path / "epochs") == [(2, 0)]
    assert train("pretrain", "epochs", "--resume").code == 0, "how often to save may change"
    assert "resumed_with" not in json.loads((tmp_path / "epochs" / "config.json").read_text())


@pytest.mark.parametrize("store", ["stream", "resident"])
@pytest.mark.parametrize("drawn", [False, True])
def test_an_epoch_begun_at_a_batch(tones: Path, store: Any, drawn: bool) -> None:
    config = with_values(preset("recommended", "pretrain"), {"train.batch_size": 16})
    stream = Loader(open_shards(tones), "train", config, device=torch.device("cpu"), batch_size=16)
    loader = placed(stream, store)
    clusters = np.arange(60) % 7 // 3 if drawn else None
    whole = list(loader.epoch(5, clusters=clusters))
    assert len(whole) == 4
    for first in range(5):
        left = list(loader.epoch(5, clusters=clusters, first_batch=first))
        assert len(left) == 4 - first
        for one, other in zip(left, whole[first:], strict=True):
            assert torch.equal(one.clip_ids, other.clip_ids) and torch.equal(one.counters, other.counters)
            assert all(torch.equal(view, same) for view, same in zip(one.views, other.views, strict=True))


def test_what_save_every_takes() -> None:
    assert parse_save_every(None) == (SaveEvery(None, 600.0), None)
    assert parse_save_every("500steps") == (SaveEvery(500, None), None)
    assert parse_save_every("1 step") == (SaveEvery(1, None), None)
    assert parse_save_every("300s") == (SaveEvery(None, 300), None)
    assert parse_save_every("2epochs") == (SaveEvery(None, None), 2)
    for text in ("", "0s", "5", "-3steps", "1.5s"):
        with pytest.raises(UserError, match="want a whole number of steps, seconds or epochs"):
            parse_save_every(text)


def test_a_save_is_due_by_the_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the time of day goes back by a day."""
    passed, real, nothing = 0.0, time.monotonic, cast(Any, None)
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed)
    options = Options(torch.device("cpu"), save_every=SaveEvery(seconds=600))
    saves = Saves(nothing, nothing, nothing, nothing, options)
    monkeypatch.setattr(time, "time", lambda: -86400.0)
    assert not saves.due(1)
    passed = 601.0
    assert saves.due(2)


def test_resume_under_another_version_or_setting(train: Cli, run: Path) -> None:
    other = ["--set", "loss.temperature=0.2"]
    described = json.loads((run / "config.json").read_text())
    described["versions"]["torch"] = "1.0"
    del described["config"]["distill.alpha"], described["config"]["loss.temperature"]  # as before there were any
    (run / "config.json").write_text(json.dumps(described))
    refused = train("pretrain", "run", "--resume", *other)
    assert refused.code == 1 and "loss.temperature was 0.1, now 0.2; version of torch was 1.0, now" in refused.error
    assert refused.error.endswith("use the same values, or another --out, or --resume-anyway")
    for name, value in (
        ("model.dim", 48),
        ("cluster.k", 5),
        ("data.crop_seconds", 0.5),
        ("data.norm", "running"),
        ("aug.mixup.memory", 16),
        ("bank.encoder", "follower"),
    ):
        refused = train("pretrain", "run", "--resume", "--set", f"{name}={value}")
        assert refused.code == 1 and refused.error.endswith("use the same values, or another --out"), name
        assert train("pretrain", "run", "--resume-anyway", "--set", f"{name}={value}").code == 1, "it cannot work"
    done = train("pretrain", "run", "--resume-anyway", *other)
    assert done.code == 0 and "resuming anyway, although loss.temperature was 0.1, now 0.2" in done.err, done.err
    assert "resuming after batch 2 of epoch 2" in done.err
    now = json.loads((run / "config.json").read_text())
    # what is installed may leave out the build: 2.13.0 of torch 2.13.0+cu130
    assert now["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert now["config"]["loss.temperature"] == 0.2
    assert [set(entry) for entry in now["resumed_with"]] == [{"loss.temperature", "version of torch"}]
    assert now["resumed_with"][0]["loss.temperature"] == {"was": 0.1, "now": 0.2}
    assert train("pretrain", "run", "--resume", *other).code == 0
    assert len(json.loads((run / "config.json").read_text())["resumed_with"]) == 1


def test_seconds_are_those_of_all_parts(train: Cli, run: Path) -> None:
    (newest,) = (run / "checkpoints").glob("epoch-000001-batch-*.json")
    state = json.loads(newest.read_text())
    assert 0 < state["seconds"] < 1000
    newest.write_text(json.dumps({**state, "seconds": 5000.0}))
    assert train("pretrain", "run", "--resume").code == 0
    assert 5000 < json.loads((run / "result.json").read_text())["seconds"] < 6000


@pytest.mark.parametrize("name", ["larc", "lars", "sgd", "adamw"])
def test_momentum_is_that_of_the_same_optimiser(train: Cli, run: Path, name: str) -> None:
    """Another one starts anew."""
    tensors = load_file(newest := next((run / "checkpoints").glob("*-batch-*.safetensors")))
    broken = {
        key: torch.full_like(value, torch.inf) for key, value in tensors.items() if key.endswith("momentum_buffer")
    }
    assert broken
    save_file({**tensors, **broken}, newest)
    notes = json.loads(newest.with_suffix(".json").read_text())
    notes["sha256"] = hashlib.sha256(newest.read_bytes()).hexdigest()
    newest.with_suffix(".json").write_text(json.dumps(notes))
    done = train("pretrain", "run", "--resume-anyway", "--set", f"optim.name={name}")
    assert done.code == (1 if name == "larc" else 0), done.err


def test_a_finished_run_goes_on_to_more_epochs_where_that_is_asked_for(train: Cli, tmp_path: Path) -> None:
    assert train("pretrain", "run").code == 0
    run = tmp_path / "run"
    again = train("pretrain", "run", "--resume")
    assert again.code == 0 and "already finished" in again.err
    refused = train("pretrain", "run", "--resume", "--epochs", 4)
    assert refused.code == 1 and "train.epochs was 3, now 4" in refused.error
    assert json.loads((run / "result.json").read_text())["last_epoch"] == 3
    done = train("pretrain", "run", "--resume-anyway", "--epochs", 4)
    assert done.code == 0 and "resuming after epoch 3" in done.err
    assert json.loads((run / "result.json").read_text())["last_epoch"] == 4
    assert [row["epoch"] for row in log_of(run)] == [1, 2, 3, 4]
    described = json.loads((run / "config.json").read_text())
    assert described["resumed_with"] == [{"train.epochs": {"was": 3, "now": 4}}]


def test_other_batches_go_on_from_the_end_of_an_epoch(train: Cli, run: Path) -> None:
    other = ["--set", "train.batch_size=10"]
    assert train("pretrain", "run", "--resume-anyway", *other, "--set", "model.dim=48").code == 1, "it cannot work"
    assert positions(run) == [(1, 0), (1, 2)], "nothing is lost by a mistake"
    done = train("pretrain", "run", "--resume-anyway", *other)
    assert (
        done.code == 0
        and "epoch-000001-batch-000000002: it was saved within an epoch with different batches" in done.err
    )
    assert "resuming after epoch 1" in done.err and [row["epoch"] for row in log_of(run)] == [1, 2, 3]
