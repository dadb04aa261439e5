"""What all adapters have in common, validation splits, and `shard --dataset` and `--list`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import DATASETS, dataset_rows
from unfused_fast.shards.datasets.splits import with_validation
from unfused_fast.shards.sources import SourceRow
from unfused_fast.shards.table import open_shards

SCENES = ("airport", "bus", "tram")


@pytest.fixture
def tut(tmp_path: Path, wav: Callable[..., None]) -> Path:
    """Three scenes, five locations each, the last the test; one listed file is missing, one is no audio."""
    root = tmp_path / "tut"
    lines: dict[bool, list[str]] = {False: [], True: []}
    for number, scene in enumerate(SCENES):
        for place in range(5):
            for segment in range(2):
                name = f"{scene}-oslo-{10 * number + place}-{segment}-a.wav"
                wav(root / "audio" / name, 48000, 2, "PCM_24")
                lines[place == 4].append(f"audio/{name}\t{scene}\n")
    (root / "audio/airport-oslo-0-0-a.wav").unlink()
    (root / "audio/bus-oslo-14-0-a.wav").write_text("this is text\n" * 50)
    (root / "evaluation_setup").mkdir()
    (root / "evaluation_setup/fold1_train.txt").write_text("".join(lines[False]))
    (root / "evaluation_setup/fold1_evaluate.txt").write_text("".join(lines[True]))
    return root


def test_a_data_set_is_packed(cli: Callable[..., Any], tut: Path, tmp_path: Path) -> None:
    done = cli("shard", "--dataset", "tut2018", tut, tmp_path / "out", "--workers", 1, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["clips"] == 28 and summary["splits"] == {"train": 18, "valid": 5, "test": 5}
    assert summary["labels"] == 3 and sum(summary["rejected"].values()) == 1
    said = " ".join(done.err.split())
    assert "tut2018: 1 of the 30 files that evaluation_setup lists are not there" in said
    assert "tut2018: 23 clips of split train here; published: 6,122." in said
    assert "tut2018: No published validation split: 5 of 23 train clips are held out, by whole groups." in said
    clips = open_shards(tmp_path / "out").clips.to_pylist()
    assert {row["fold"] for row in clips} == {None}
    assert not {row["group"] for row in clips if row["split"] == "valid"} & {
        row["group"] for row in clips if row["split"] != "valid"
    }
    assert cli("check", tmp_path / "out").code == 0


def test_list(cli: Callable[..., Any]) -> None:
    done = cli("shard", "--list", "--json")
    listed = json.loads(done.out)
    assert done.code == 0 and [about["name"] for about in listed] == list(DATASETS)
    for about in listed:
        assert set(about) == {"name", "task", "classes", "clips", "licence", "source", "layout", "options"}
        assert about["classes"] > 1 and all(about[key] for key in ("task", "licence", "source", "layout"))
    text = cli("shard", "--list").out
    assert "nsynth: instrument family of a note; 11 classes; clips: 289,205 train, 12,678 valid, 4,096 test" in text
    assert "--option test=test|valid" in text and all(dataset.layout in text for dataset in DATASETS.values())


def test_what_cannot_be_asked(cli: Callable[..., Any], tut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such data set; there are: " + ", ".join(DATASETS) in cli("shard", "--dataset", "mnist", tut, out).error
    assert "own labels" in cli("shard", "--dataset", "tut2018", tut, out, "--labels-from-folders").error
    assert "no such option" in cli("shard", "--dataset", "tut2018", tut, out, "--option", "a=b").error
    assert "want key=value" in cli("shard", "--dataset", "tut2018", tut, out, "--option", "a").error
    assert "name it with --dataset" in cli("shard", tut, out, "--option", "a=b").error
    assert "no such folder; tut2018 wants" in cli("shard", "--dataset", "tut2018", tmp_path / "gone", out).error
    for given in ((), (tut,)):
        done = cli("shard", *given)
        assert done.code == 2 and ("missing OUT" if given else "missing SOURCE and OUT") in done.err
    assert not out.exists()


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_adapter_refuses_another_folder_with_its_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("no audio")
    with pytest.raises(UserError) as caught:
        dataset_rows(name, tmp_path, {})
    assert str(tmp_path) in str(caught.value) and DATASETS[name].layout in str(caught.value)
    with pytest.raises(UserError, match="surprise"):
        dataset_rows(name, tmp_path, {"surprise": "1"})
    assert set(DATASETS[name].clips) <= {"train", "valid", "test"}


def _rows(groups: dict[str, tuple[str, int]], split: str = "train") -> list[SourceRow]:
    return [
        SourceRow(Path(f"{group}{number}"), f"{group}{number}", label, split, group)
        for group, (label, count) in groups.items()
        for number in range(count)
    ]


def test_validation_takes_whole_groups_of_every_label() -> None:
    groups = {f"s{number}": ("cat" if number % 2 else "dog", 1 + number % 3) for number in range(60)}
    rows = _rows(groups) + _rows({"t": ("dog", 4)}, "test")
    made = with_validation(rows)
    assert [row.source for row in made] == [row.source for row in rows]
    splits = {group: {row.split for row in made if row.group == group} for group in (*groups, "t")}
    assert all(len(found) == 1 for found in splits.values()) and splits["t"] == {"test"}
    for label in ("cat", "dog"):
        counts = Counter(row.split for row in made if row.label == label)
        assert 0.08 < counts["valid"] / (counts["valid"] + counts["train"]) < 0.15
    assert with_validation(rows) == made and with_validation(rows, seed=1) != made


def test_validation_at_its_limits() -> None:
    made = with_validation(_rows({"a": ("dog", 50), "b": ("dog", 30), "c": ("dog", 40), "lone": ("cat", 9)}))
    assert {row.group for row in made if row.split == "valid"} == {"b"}  # the smallest; cat keeps its only group
    official = _rows({"a": ("dog", 5)}) + _rows({"b": ("dog", 1)}, "valid")
    assert with_validation(official) == official
    single = [SourceRow(Path(str(number)), str(number)) for number in range(100)]
    assert Counter(row.split for row in with_validation(single)) == {"train": 90, "valid": 10}
