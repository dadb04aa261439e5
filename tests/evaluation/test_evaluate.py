"""`evaluate`: folds, few labels, errors, predictions kept; scores beside scikit-learn's: stages/test_recordings.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from outcomes import Cli, PackRows

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.evaluation.measure import Plan, measure
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.labels import labelled_clips
from unfused_fast.stages.protocol import rounds_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folded(tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips in four folds, all in split train, as UrbanSound8K is published; one more without a fold."""
    rows = [
        replace(row, split="train", fold=1 + number // 3 % 4)
        for number, row in enumerate(row for row in tone_rows if row.split == "train")
    ]
    extra = next(row for row in tone_rows if row.split == "test")
    return pack_rows([*rows, replace(extra, split="train")], tmp_path_factory.mktemp("sets") / "folded")


def test_every_clip_of_a_fold_is_tested_once_by_heads_that_never_saw_its_fold(folded: Path) -> None:
    clips = labelled_clips(open_shards(folded), by_folds=True)
    rounds = rounds_of(clips, True, 0.15, seed=0)
    assert len(clips.clip_ids) == 60, "the clip without a fold is left out"
    assert sorted(np.concatenate([part.test for part in rounds]).tolist()) == list(range(60))
    for number, part in enumerate(rounds):
        assert set(clips.fold_of[part.test]) == {number + 1}
        assert set(clips.fold_of[part.valid]) == {(number + 1) % 4 + 1}
        assert set(clips.fold_of[part.train]) == {1, 2, 3, 4} - {number + 1, (number + 1) % 4 + 1}


def test_the_command_compares_encoders(cli: Cli, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    arguments = ["evaluate", tones, "--encoder", f"DECAR={pretrained}", "--out", out, "--knn"]
    arguments += ["--label-fraction", "0.1,1", "--seeds", 2, "--device", "cpu", "--set", "eval.epochs=30"]
    done = cli(*arguments, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result == json.loads((out / "evaluation.json").read_text())
    rows = {(row["encoder"], row["method"], row["label_fraction"]): row for row in result["rows"]}
    assert len(rows) == 3 * 2 * 2 and result["metric"] == "accuracy"
    for row in rows.values():
        assert 0 <= row["interval"][0] <= row["test"] <= row["interval"][1] <= 1
        assert row["repetitions"] == 2 and row["test_clips"] == 18
    assert rows["DECAR", "linear", 0.1]["train_clips"] == 6
    assert rows["DECAR", "linear", 1.0]["test"] > 0.6, "three classes that differ by pitch"
    assert rows["DECAR", "linear", 1.0]["parameters"] == rows["random", "knn", 1.0]["parameters"]
    tiny = 9 * 4 + 4 + 2 * (9 * 4 * 4 + 4) + 3 * 2 * 4 + 32 * 32 + 32 + 32 * 32 + 32  # of four channels, as the run has
    assert rows["DECAR", "linear", 1.0]["parameters"] == tiny
    assert rows["logmel", "linear", 1.0]["parameters"] is None
    # every number can be had again from the predictions
    kept = pq.read_table(out / "predictions.parquet").to_pylist()
    for (encoder, method, fraction), row in rows.items():
        mine = [k for k in kept if (k["encoder"], k["method"], k["label_fraction"]) == (encoder, method, fraction)]
        assert len(mine) == 36 and {k["seed"] for k in mine} == {0, 1}
        assert np.mean([k["label"] == k["prediction"] for k in mine]) == pytest.approx(row["test"])
    wanted = {"first": "random", "second": "DECAR", "method": "knn", "label_fraction": 0.1}
    (pair,) = [pair for pair in result["comparisons"] if wanted.items() <= pair.items()]
    right: dict[str, dict[int, bool]] = {"random": {}, "DECAR": {}}
    for k in kept:
        if (k["method"], k["label_fraction"], k["seed"]) == ("knn", 0.1, 0) and k["encoder"] in right:
            right[k["encoder"]][k["clip_id"]] = k["label"] == k["prediction"]
    assert pair["mcnemar"]["only_second"] == sum(right["DECAR"][i] and not right["random"][i] for i in right["random"])
    shown = cli(*arguments, "--overwrite").out
    assert "± " in shown and "over repetitions" in shown and "differences, first minus second, in points" in shown
    assert "over folds" not in shown, "no column that is empty in every row"
    again = cli(*arguments)
    assert again.code == 1 and "--overwrite" in again.error


def test_the_random_row_says_whose_size_it_has(cli: Cli, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    """Where the encoders differ in size."""
    given = ["--encoder", f"tiny={pretrained}", "--encoder", "base", "--device", "cpu", "--set", "eval.epochs=1"]
    done = cli("evaluate", tones, *given, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    sizes = {row["encoder"]: row["parameters"] for row in json.loads(done.out)["rows"]}
    assert set(sizes) == {"logmel", "random (as tiny)", "tiny", "base"}
    assert sizes["random (as tiny)"] == sizes["tiny"] != sizes["base"]


def test_the_command_cross_validates(cli: Cli, folded: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", folded, "--encoder", "logmel", "--out", tmp_path / "out", "--device", "cpu"]
    refused = cli(*arguments)
    assert refused.code == 1 and "train and test are needed" in refused.error and "--folds" in refused.error
    done = cli(*arguments, "--folds", "--json", "--no-baselines", "--set", "eval.epochs=20")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert len(row["folds"]) == 4 and row["test"] == pytest.approx(np.mean(row["folds"]))
    assert row["test_clips"] == 60 and row["fold_error"] is not None
    assert row["test"] > 0.8, "log-mel means tell three pitches apart"


def test_train_linear_wants_one_label_a_clip(
    cli: Cli, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    several = [replace(row, label=None, labels=(row.label or "", "sound")) for row in tone_rows]
    arguments = ["--encoder", "logmel", "--device", "cpu", "--out", tmp_path / "out"]
    done = cli("train", "linear", pack_rows(several, tmp_path / "set"), *arguments)
    assert done.code == 1 and "several labels each" in done.error and "use unfused-fast evaluate" in done.error
    assert not (tmp_path / "out").exists()


def test_shuffled_labels_score_chance(tones: Path) -> None:
    config = with_values(Config(), {"eval.shuffle_labels": True, "eval.epochs": 20})
    shares = []
    for seed in range(6):
        clips, (found,) = measure(
            with_values(config, {"train.seed": seed}), open_shards(tones), {"logmel": ["logmel"]}, Plan(), CPU
        )
        shares.append((found.scores.argmax(axis=1) == clips.targets[found.rows]).mean())
    assert 0.15 < np.mean(shares) < 0.52, "a third, of 108 clips"


def test_what_cannot_be_evaluated_is_said(cli: Cli, unlabelled: Path, tones: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        done = cli("evaluate", *arguments, "--device", "cpu", "--out", tmp_path / "out")
        assert done.code == 1 and not (tmp_path / "out").exists()
        return done.error

    assert "without a label: 60 of 60 clips of split train;" in error(unlabelled, "--encoder", "random")
    for words, *flags in (
        ("no fold", "random", "--folds"),
        ("not a run of unfused-fast", tmp_path / "nothing"),
        ("0 < fraction <= 1", "random", "--label-fraction", "0,1"),
        ("numbers between commas", "random", "--label-fraction", "all"),
        ("given twice", "a=x", "--encoder", "a=x"),
        ("given twice", "a=x/y", "--encoder", "a=x/./z/../y"),
        ("given twice", "x", "--encoder", f"b={Path.cwd() / 'x'}"),
        ("name of a baseline", "random=x"),
        ("name of a baseline", "logmel=x", "--no-baselines"),
        ("at least 1", "random", "--seeds", "0"),
        ("--devices 99999: this machine has", "random", "--devices", 99999),
        ("use --label-fraction 0.1", "random", "--set", "eval.label_fraction=0.1"),
        ("add --no-baselines", "random", "--set", "eval.features=projector"),
    ):
        assert words in error(tones, "--encoder", *flags)


def test_an_out_that_cannot_be_written_is_said_before_anything_is_measured(
    cli: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    given = ["evaluate", tones, "--encoder", "logmel", "--no-baselines", "--device", "cpu", "--out"]
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 250)):  # with .partial its name is too long
        done = cli(*given, out)
        assert done.code == 1 and f"{out}: cannot be written (" in done.error and "choose another --out" in done.error
        assert "evaluate: logmel" not in done.err
    measured = cli(*given, tmp_path / "o")
    assert measured.code == 0 and f"evaluate: logmel on {tones.name}" in measured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "o"]
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "o")
        assert "it is the working directory itself" in cli(*given, ".", "--overwrite").error
    for folder in (tmp_path / "o", tmp_path / "o.partial"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
        foreign = cli(*given, tmp_path / "o", "--overwrite")
        assert f"{folder}: it holds files that do not belong to an evaluation (mine.txt)" in foreign.error
        assert (folder / "mine.txt").read_text() == "mine" and "evaluate: logmel" not in foreign.err
        (folder / "mine.txt").rename(folder / "evaluation.json.new")  # as a kill leaves it
    assert cli(*given, tmp_path / "o", "--overwrite").code == 0 and not (tmp_path / "o.partial").exists()


def test_an_encoder_without_the_head_is_named_before_others_are_measured(
    cli: Cli, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    given = ["--encoder", pretrained, "--encoder", "base", "--no-baselines", "--set", "eval.features=projector"]
    done = cli("evaluate", tones, *given, "--out", tmp_path / "out", "--device", "cpu")
    assert "base: it has no projection head" in done.error and "evaluate: " not in done.err


def test_train_linear_chooses_rate_and_epoch_by_the_test_where_it_is_told_to(
    cli: Cli, tones: Path, tmp_path: Path
) -> None:
    def result(rates: str, epochs: int, select: str = "valid") -> dict[str, Any]:
        # permuted labels: no head is good, the best is so by chance, and validation knows nothing of it
        fields = [f"lr_grid={rates}", f"lr={rates.split(',')[0]}", "shuffle_labels=True", f"select={select}"]
        arguments: list[object] = ["--encoder", "logmel", "--device", "cpu", "--epochs", epochs, "--overwrite"]
        for field in fields:
            arguments += ["--set", f"eval.{field}"]
        done = cli("train", "linear", tones, "--out", tmp_path / "run", "--seed", 9, "--json", *arguments)
        assert done.code == 0, done.err
        return dict(json.loads(done.out))

    tests = {(rate, epochs): result(rate, epochs)["test"] for rate in ("0.0003", "0.03") for epochs in (1, 2, 3)}
    honest, best = result("0.0003,0.03", 3), result("0.0003,0.03", 3, "best_test")
    assert (honest["select"], best["select"]) == ("valid", "best_test")
    assert best["lr"] == 0.03 and best["valid_by_lr"]["0.0003"] > best["valid_by_lr"]["0.03"], "seed 9 tells them apart"
    assert best["test"] == max(tests.values()) > max(tests["0.0003", epochs] for epochs in (1, 2, 3))
    assert best["test"] > max(tests[rate, 3] for rate in ("0.0003", "0.03")) >= honest["test"]
