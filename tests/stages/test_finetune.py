"""`train finetune`: the encoder learns with the head, exactly resumed, chosen by validation, told in the same words."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import Cli, PackRows
from safetensors.torch import load_file
from same_runs import assert_same_run, log_of
from stopping import signalled_after

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.embedding.embedder import load
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import load_encoder

CPU = torch.device("cpu")


@pytest.fixture
def tune(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> Cli:
    """`tune(name, ...)`: three epochs on `tones` from a random encoder, unless flags say otherwise, into that name."""

    def run(name: str, *flags: object, shards: Path = tones, encoder: object = "random", epochs: int = 3) -> Any:
        out = tmp_path / name
        return cli(
            "train", "finetune", shards, "--encoder", encoder, "--out", out, "--epochs", epochs, "--json", *tiny, *flags
        )  # fmt: skip

    return run


def result_of(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def newest(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").glob("epoch-??????.safetensors")))


def test_the_encoder_begins_as_the_runs_and_is_trained_whole(
    tune: Cli, pretrained: Path, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    assert tune("run", encoder=pretrained, epochs=1).code == 0
    before, after = newest(pretrained), newest(tmp_path / "run")
    changed = [
        name for name in before if name.startswith("model.encoder.") and not torch.equal(before[name], after[name])
    ]
    assert len(changed) == sum(name.startswith("model.encoder.") for name in before)
    # no step to speak of, on other clips: the same encoder, with the statistics that it was trained with
    other = pack_rows([row for row in tone_rows if row.label != "low"], tmp_path / "other")
    assert tune("still", "--set", "optim.lr=1e-30", encoder=pretrained, shards=other, epochs=1).code == 0
    first, still = load_encoder(pretrained, CPU), load_encoder(tmp_path / "still", CPU)
    assert first.network is not None and still.network is not None
    own = dict(still.network.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in first.network.named_parameters())
    assert still.log_mel == pytest.approx({name: (first.log_mel or {})[name] for name in ("mean", "std")}, rel=1e-15)


def test_a_run_stopped_within_epochs_ends_as_the_undisturbed_one(tune: Cli, tmp_path: Path) -> None:
    flags = ["--set", "finetune.augment=true", "--set", "eval.label_fraction=0.9"]
    assert tune("whole", *flags).code == 0
    parts = tmp_path / "parts"
    stops = [(1, signal.SIGTERM, (0, 1)), (4, signal.SIGUSR1, (1, 2)), (2, signal.SIGINT, (2, 1))]
    for steps, number, (done, batch) in stops:
        with signalled_after(steps, number):
            stopped = tune("parts", *flags, *(["--resume"] if done else []))
        assert stopped.code == 130, stopped.err
        assert f"stopped after batch {batch} of epoch {done + 1}, saved" in stopped.err
    resumed = tune("parts", *flags, "--resume")
    assert resumed.code == 0 and "resuming after batch 1 of epoch 3" in resumed.err, resumed.err
    assert_same_run(parts, tmp_path / "whole")
    again = tune("parts", *flags, "--resume")
    assert again.code == 0 and "already finished" in again.err


def test_a_run_stopped_within_an_epoch_does_not_go_on_with_other_clips(tune: Cli) -> None:
    with signalled_after(4):
        assert tune("run").code == 130
    refused = tune("run", "--resume", "--set", "eval.label_fraction=0.5")
    assert refused.code == 1 and "eval.label_fraction was 1.0, now 0.5" in refused.error
    gone_on = tune("run", "--resume-anyway", "--set", "eval.label_fraction=0.6")
    assert gone_on.code == 0 and "within an epoch with different clips; resuming from epoch 1" in gone_on.err, (
        gone_on.err
    )


def test_the_test_split_chooses_nothing(
    tune: Cli, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    labels = {"low": "high", "middle": "low", "high": "middle"}
    poisoned = pack_rows(
        [replace(row, label=labels[row.label or ""]) if row.split == "test" else row for row in tone_rows],
        tmp_path / "set",
    )
    flags = ["--set", "optim.lr=0.01"]
    true = result_of(tune("true", *flags, epochs=6))
    wrong = result_of(tune("poisoned", *flags, shards=poisoned, epochs=6))
    assert true["chosen_epoch"] == wrong["chosen_epoch"] and true["valid"] == wrong["valid"]
    assert log_of(tmp_path / "true") == log_of(tmp_path / "poisoned")
    first, second = newest(tmp_path / "true"), newest(tmp_path / "poisoned")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert true["test"] > 0.6 and true["test"] != wrong["test"]
    losses = [line["loss"] for line in log_of(tmp_path / "true")]
    assert losses[-1] < 0.8 * losses[0]


def test_the_epoch_is_chosen_by_the_test_only_where_it_is_told_to(tune: Cli, tmp_path: Path) -> None:
    result = result_of(tune("run", "--set", "eval.select=best_test", "--set", "optim.lr=0.01", epochs=4))
    judged = [line["test"] for line in log_of(tmp_path / "run")]
    assert result["select"] == "best_test" and result["test"] == pytest.approx(max(judged), abs=1e-6)
    assert result["chosen_epoch"] == 1 + judged.index(max(judged))
    assert all("valid" not in line for line in log_of(tmp_path / "run"))


def test_few_labels_and_a_held_out_validation(
    cli: Cli, tune: Cli, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    flags = ["--set", "eval.label_fraction=0.1"]
    few = result_of(tune("few", *flags, epochs=1))
    assert few["clips"] == {"train": 6, "valid": 18, "test": 18} and few["batch_size"] == 6
    assert few["label_fraction"] == 0.1
    shards = pack_rows([row for row in tone_rows if row.split == "train"], tmp_path / "set")
    held = result_of(tune("held", shards=shards, epochs=1))
    linear = cli(
        "train", "linear", shards, "--encoder", "logmel", "--out", tmp_path / "linear", "--json", "--device", "cpu"
    )
    assert held["test"] is None and held["clips"] == result_of(linear)["clips"], "the same clips are held out"
    assert held["clips"]["train"] + held["clips"]["valid"] == 60


@pytest.mark.parametrize("store", ["stream", "resident"])
def test_a_loader_of_some_clips_gives_just_those(tones: Path, store: Any) -> None:
    shards = open_shards(tones)
    chosen = np.arange(shards.first_id("train"), shards.first_id("train") + 60)[::7]
    config = with_values(Config(), {"data.store": store})

    def loader(size: int, only: Any = None) -> Any:
        return placed(Loader(shards, "train", config, device=CPU, batch_size=size, only=only), store)

    every = {int(batch.clip_ids): batch.views[0] for batch in loader(1).epoch(3, views=1)}
    found = list(loader(4, chosen).epoch(3, views=1))
    assert [len(batch.clip_ids) for batch in found] == [4, 4, 1]
    ids = torch.cat([batch.clip_ids for batch in found]).tolist()
    assert sorted(ids) == chosen.tolist()
    crops = torch.cat([batch.views[0] for batch in found])
    assert all(torch.equal(crop[None], every[number]) for number, crop in zip(ids, crops, strict=True))
    whole = torch.cat([batch.clip_ids for batch in loader(4, chosen).whole_clips()])
    assert sorted(whole.tolist()) == chosen.tolist()


def test_the_run_is_one_for_every_command_that_takes_an_encoder(
    cli: Cli, tune: Cli, tones: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert tune("run", epochs=2).code == 0
    linear = cli("train", "linear", tones, "--encoder", run, "--out", tmp_path / "linear", "--json", "--device", "cpu")
    assert result_of(linear)["features"] == 32
    hub = tmp_path / "hub"
    assert cli("export", run, "--hub", hub).code == 0
    waveform = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    assert torch.equal(load(hub, "cpu").embed(waveform, 16000), load(run, "cpu").embed(waveform, 16000))
    assert tune("again", encoder=hub, epochs=1).code == 0
    table = cli("report", run, tmp_path / "linear")
    assert table.code == 0 and "finetune" in table.out
    row = next(row for row in json.loads(cli("report", run, "--json").out) if row["stage"] == "finetune")
    assert row["task"] == tones.name and {"valid", "test", "macro_f1", "label_fraction", "clips"} <= row.keys()


def test_what_cannot_be_fine_tuned_is_said(
    tune: Cli, unlabelled: Path, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    def error(*flags: object, **more: Any) -> str:
        done = tune("run", *flags, **more)
        assert done.code == 1 and not (tmp_path / "run").exists()
        return str(done.error)

    assert "without a label" in error(shards=unlabelled)
    assert "nothing to train" in error(encoder="logmel")
    assert "not a run of unfused-fast" in error(encoder=tmp_path / "nothing")
    assert "eval.encoder = student3" in error("--set", "eval.encoder=student3")
    one = pack_rows([row for row in tone_rows if row.label == "low"], tmp_path / "one")
    assert "one class only" in error(shards=one)
    untested = pack_rows([row for row in tone_rows if row.split != "test"], tmp_path / "untested")
    assert "the set has no test split" in error("--set", "eval.select=best_test", shards=untested)
    tested = pack_rows([row for row in tone_rows if row.split == "test"], tmp_path / "tested")
    assert "no train split" in error(shards=tested)
