"""`--holdout`: a test out of train, whole groups, every class in its share, the same for every command and seed; and
what is left out or repeated is said once."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import Cli, PackRows

from unfused_fast.console import Sentences
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.labels import TEST, hold_out_groups, labelled_clips

LOGMEL = ["--encoder", "logmel", "--device", "cpu", "--set", "eval.epochs=5", "--json"]


@pytest.fixture(scope="module")
def untested(tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 train clips of three classes, three to a group, and 18 clips of a split that nothing reads."""
    train = [row for row in tone_rows if row.split == "train"]
    rows = [replace(row, group=f"speaker{number // 3}") for number, row in enumerate(train)]
    extra = [replace(row, split="extra") for row in tone_rows if row.split == "valid"]
    return pack_rows([*rows, *extra], tmp_path_factory.mktemp("sets") / "untested")


def test_a_set_without_a_test_split_is_offered_one_and_gets_it(cli: Cli, untested: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = cli("evaluate", untested, *LOGMEL, "--out", out)
    assert refused.code == 1 and "--holdout 0.2" in refused.error and not out.exists()
    done = cli("evaluate", untested, *LOGMEL, "--out", out, "--no-baselines", "--holdout", 0.2)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["held_out"] == {"fraction": 0.2, "recordings": 12, "groups": 4, "whole_groups": True}
    assert "held out as test: 12 of 60 train recordings, of 4 whole groups" in done.err
    assert "held out of train (--holdout 0.2)" in (out / "evaluation.md").read_text()
    table = open_shards(untested).clips.to_pylist()
    tested = [table[row["clip_id"]] for row in pq.read_table(out / "predictions.parquet").to_pylist()]
    assert Counter(row["label"] for row in tested) == {0: 4, 1: 4, 2: 4}
    groups = {row["group"] for row in tested}
    assert {row["clip_id"] for row in tested} == {row["clip_id"] for row in table if row["group"] in groups}
    # every other command and seed has the same test
    for number, command in enumerate((["evaluate", "--no-baselines", "--seed", 7], ["train", "linear", "--seed", 3])):
        words = [word for word in command if word in ("evaluate", "train", "linear")]
        more = [word for word in command if word not in words]
        again = cli(*words, untested, *LOGMEL, "--out", tmp_path / str(number), *more, "--holdout", 0.2)
        assert again.code == 0, again.err
        assert json.loads(again.out)["held_out"] == result["held_out"]
    ids = {row["clip_id"] for row in pq.read_table(tmp_path / "0" / "predictions.parquet").to_pylist()}
    assert ids == {row["clip_id"] for row in tested}
    linear = json.loads(cli("report", tmp_path / "1", "--json").out)[0]
    assert linear["recordings"]["test"] == 12 and sum(linear["recordings"].values()) == 60
    assert "(held out)" in cli("report", tmp_path / "1").out


def test_fine_tuning_holds_out_the_same_and_who_saw_its_labels_is_named(
    cli: Cli, untested: Path, tiny: list[str], tmp_path: Path
) -> None:
    def tuned(share: float, *flags: object) -> Any:
        arguments = ["--encoder", "random", "--out", tmp_path / f"{share:g}", "--epochs", 1, "--holdout", share]
        return cli("train", "finetune", untested, *arguments, *tiny, *flags, "--json")

    result = json.loads(tuned(0.2).out)
    assert result["held_out"]["recordings"] == 12 and result["recordings"]["test"] == 12
    tuned(0.4)
    arguments = ["--no-baselines", "--holdout", 0.2, "--device", "cpu", "--set", "eval.epochs=1", "--overwrite"]
    said = {}
    for share in ("0.2", "0.4"):
        done = cli("evaluate", untested, "--encoder", tmp_path / share, "--out", tmp_path / "out", *arguments)
        assert done.code == 0, done.err
        said[share] = "on labels of the held-out test" in done.err
    assert said == {"0.2": False, "0.4": True}
    other = tuned(0.2, "--resume", "--holdout", 0.3)
    assert other.code == 1 and "holdout was 0.2, now 0.3" in other.error


def test_lape_holds_out_of_a_set_that_has_no_test(
    cli: Cli, untested: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bsd").symlink_to(untested)
    few = ["--set", "eval.epochs=5", "--set", "data.crop_seconds=0.3", "--set", "pseudo.n_init=1", "--epochs", 1]

    def row(name: str, *flags: object) -> dict[str, Any]:
        arguments = ["--teacher", pretrained, "--out", tmp_path / name, "--tasks", "bsd", *few, *tiny, *flags]
        done = cli("lape", tmp_path / "data", *arguments, "--json")
        found = dict(json.loads(done.out)["tasks"][0])
        assert done.code == (found["state"] != "done"), done.err
        return found

    refused, held = row("without"), row("with", "--holdout", 0.2)
    assert refused["state"] == "wrong" and "--holdout 0.2" in refused["reason"]
    assert held["state"] == "done" and any("0.2 of train was held out as test" in note for note in held["notes"])
    kept = pq.read_table(tmp_path / "with/tasks/bsd/full/predictions.parquet").num_rows
    assert kept == 12


def test_what_cannot_be_held_out_is_said(cli: Cli, untested: Path, tones: Path, tmp_path: Path) -> None:
    def error(shards: Path, *flags: object) -> str:
        done = cli("evaluate", shards, *LOGMEL, "--out", tmp_path / "out", *flags)
        assert done.code == 1 and not (tmp_path / "out").exists()
        return str(done.error)

    assert "it already has a test split; leave out --holdout" in error(tones, "--holdout", 0.2)
    for share in (0, 1, -0.1, 2):
        assert f"--holdout {share:g}: want a share" in error(untested, "--holdout", share)
    linear = cli("train", "linear", untested, *LOGMEL, "--out", tmp_path / "linear")
    assert linear.code == 0 and "no test split, so validation alone is scored; --holdout 0.2" in linear.err


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    group=st.integers(1, 4),
    fraction=st.sampled_from([0.05, 0.2, 0.5]),
    several=st.booleans(),
    seed=st.integers(0, 9),
)
def test_whole_groups_are_held_out_of_every_class_in_its_share(
    sizes: list[int], group: int, fraction: float, several: bool, seed: int
) -> None:
    """Groups of one class each: of a class with one group nothing is, of others a group at least, near the share."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    groups = [
        f"{label}-{place // group}" for size, label in zip(sizes, range(9), strict=False) for place in range(size)
    ]
    targets = np.eye(len(sizes), dtype=bool)[labels] if several else labels
    groups_of = [-(-size // group) for size in sizes]
    if max(groups_of) == 1:
        if several:
            with pytest.raises(UserError, match="no group"):
                hold_out_groups(groups, targets, fraction, seed)
        return
    held, whole = hold_out_groups(groups, targets, fraction, seed, TEST)
    assert whole and np.array_equal(held, hold_out_groups(groups, targets, fraction, seed, TEST)[0])
    assert not set(np.array(groups)[held]) & set(np.array(groups)[~held])
    for label, (size, count) in enumerate(zip(sizes, groups_of, strict=True)):
        out = int(held[labels == label].sum())
        assert out < size and (out == 0 if count == 1 else abs(out - max(1, fraction * size)) <= group)


def test_groups_over_classes_draws_and_single_clips_where_each_class_is_a_group() -> None:
    groups, labels = [f"speaker{number % 20}" for number in range(400)], np.arange(400) % 3
    held, whole = hold_out_groups(groups, labels, 0.15, seed=0)
    assert whole and held.mean() == pytest.approx(0.15, abs=0.05)
    assert not np.array_equal(held, hold_out_groups(groups, labels, 0.15, seed=1)[0])
    assert hold_out_groups(["a", "b"] * 20, np.arange(40) // 2 % 2, 0.1, seed=0)[0].sum() == 20, "one of two large ones"
    held, whole = hold_out_groups(["a"] * 10 + ["b"] * 10, np.repeat([0, 1], 10), 0.2, seed=0)
    assert held.sum() == 4 and not whole


def test_speakers_that_are_the_classes_are_shared_and_that_is_said(
    cli: Cli, tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path: Path
) -> None:
    rows = [replace(row, group=row.label) for row in tone_rows if row.split == "train"]
    shards = pack_rows(rows, tmp_path / "set")
    done = cli("evaluate", shards, *LOGMEL, "--out", tmp_path / "out", "--no-baselines", "--holdout", 0.2)
    assert done.code == 0 and "each class is one group" in done.err
    assert json.loads(done.out)["held_out"]["whole_groups"] is False
    clips = labelled_clips(open_shards(shards), False, holdout=0.2)
    used = np.array(clips.split_of)
    assert np.bincount(clips.targets[used == "test"]).tolist() == [4, 4, 4]


def test_what_is_not_used_or_padded_is_said_once_with_its_count(
    cli: Cli, untested: Path, tiny: list[str], tiny_heads: list[str], tmp_path: Path
) -> None:
    unused = "split 'extra' (18 clips) is not used"
    arguments = ["--encoder", "logmel", "--encoder", "random", "--seeds", 3, "--holdout", 0.2]
    arguments += [*tiny_heads, "--set", "eval.epochs=1", "--set", "data.crop_seconds=1.15"]
    done = cli("evaluate", untested, "--out", tmp_path / "out", *arguments)
    assert done.code == 0, done.err
    short = sum(clip["seconds"] < 1.15 for clip in open_shards(untested).clips_in("train").to_pylist())
    assert (
        10 < short < 50 and f"shorter than a crop of 1.15 s, and padded with silence: {short} of 60 clips" in done.err
    )
    lines = [line for line in done.err.splitlines() if not line.startswith("evaluate: ")]
    assert unused in done.err and len(lines) == len({line.split(" ready in ")[0] for line in lines})
    assert sum(line.startswith("data.store: auto") for line in lines) == 1, done.err
    trained = cli("train", "pretrain", untested, "--out", tmp_path / "run", "--epochs", 1, *tiny)
    assert trained.code == 0 and trained.err.count(unused) == 1


def test_what_nobody_heard_is_said_later(capsys: pytest.CaptureFixture[str]) -> None:
    console = Sentences()
    for console.quiet in (True, False, False):
        console.once("two of them")
    assert capsys.readouterr().out.splitlines() == ["two of them"]
