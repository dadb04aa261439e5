"""FSD50K in miniature: all labels of a clip, and the Freesound recordings it shares with other data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.fsd50k import DATASET, freesound_ids
from unfused_fast.shards.sets.table import open_shards

DEV = {
    "64760": ("Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music", "train"),
    "16399": ("Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music", "train"),
    "100032": ("Bark,Dog,Animal", "train"),
    "44981": ("Bird,Animal", "val"),
}
EVAL = {"37199": "Guitar,Plucked_string_instrument,Musical_instrument,Music", "100033": "Bark,Dog,Animal"}
CLASSES = (
    "Animal", "Bark", "Bird", "Dog", "Electric_guitar", "Guitar", "Music", "Musical_instrument",
    "Plucked_string_instrument",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, wav: Callable[..., None]) -> Path:
    base = tmp_path / "fsd50k"
    truth = base / "FSD50K.ground_truth"
    truth.mkdir(parents=True)
    for part, names in (("dev", DEV), ("eval", EVAL)):
        for name in names:
            wav(base / f"FSD50K.{part}_audio" / f"{name}.wav", 44100)
    lines = [f'{name},"{labels}","/m/0,/m/1",{split}' for name, (labels, split) in DEV.items()]
    (truth / "dev.csv").write_text("\n".join(["fname,labels,mids,split", *lines]) + "\n")
    lines = [f'{name},"{labels}","/m/0,/m/1"' for name, labels in EVAL.items()]
    (truth / "eval.csv").write_bytes("\r\n".join(["fname,labels,mids", *lines]).encode("utf-8-sig"))
    (truth / "vocabulary.csv").write_text("".join(f"{n},{name},/m/{n}\n" for n, name in enumerate(CLASSES)))
    for folder in ("FSD50K.metadata", "FSD50K.doc"):
        (base / folder).mkdir()
    return base


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """UrbanSound8K with two slices of 100032 and one of 100033, freefield1010 with 44981, as they are shipped."""
    folder = tmp_path / "other sets"
    (folder / "UrbanSound8K/metadata").mkdir(parents=True)
    (folder / "UrbanSound8K/metadata/UrbanSound8K.csv").write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n"
        "100032-3-0-1.wav,100032,1.0,1.4,1,5,3,dog_bark\n"
        "100033-3-0-1.wav,100033,1.0,1.4,1,6,3,dog_bark\n"
        "7-3-0-1.wav,7,1.0,1.4,1,6,3,dog_bark\n"
    )
    (folder / "ff1010bird_metadata_2018.csv").write_text(
        "itemid,datasetid,hasbird\n44981,ff1010bird,1\n8,ff1010bird,0\n"
    )
    return folder


def test_dev_has_train_and_valid_with_all_labels(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert [(row.source, row.label, row.labels, row.split, row.group) for row in found.rows] == [
        (
            f"FSD50K.dev_audio/{name}.wav",
            None,
            tuple(labels.split(",")),
            {"train": "train", "val": "valid"}[split],
            name,
        )
        for name, (labels, split) in DEV.items()
    ]
    assert found.notes == [
        "vocabulary.csv names 9 classes; published: 200.",
        "3 clips of split train here; published: 36,796.",
        "1 clips of split valid here; published: 4,170.",
    ]


def test_all_has_eval_as_the_test(root: Path) -> None:
    found = DATASET.discover(root, {"clips": "all"})
    assert [(row.source, ",".join(row.labels), row.split) for row in found.rows if row.split == "test"] == [
        (f"FSD50K.eval_audio/{name}.wav", labels, "test") for name, labels in EVAL.items()
    ]
    assert Counter(row.split for row in found.rows) == {"train": 3, "valid": 1, "test": 2}


def test_freesound_recordings_of_other_sets_are_left_out(root: Path, others: Path) -> None:
    assert freesound_ids(others) == {"urbansound8k": {"100032", "100033", "7"}, "freefield1010": {"44981", "8"}}
    found = DATASET.discover(root, {"clips": "all", "exclude": str(others)})
    assert [row.group for row in found.rows] == ["64760", "16399", "37199"]
    assert found.notes[-2:] == [
        "Clips left out because urbansound8k uses their recording (3 in all): 1 of train, 1 of test.",
        "Clips left out because freefield1010 uses their recording (2 in all): 1 of valid.",
    ]
    urban = others / "UrbanSound8K"
    for places in (str(urban), str(urban / "metadata/UrbanSound8K.csv"), f"{urban}, {urban}"):
        rows = DATASET.discover(root, {"exclude": places}).rows
        assert [row.group for row in rows] == ["64760", "16399", "44981"]


def test_exclude_names_what_it_wants(root: Path, others: Path) -> None:
    for places, words in (
        (str(others / "gone"), "name folders or tables, separated by commas"),
        (str(root), "neither UrbanSound8K nor freefield1010"),
        (str(root / "FSD50K.ground_truth/dev.csv"), "neither UrbanSound8K nor freefield1010"),
    ):
        with pytest.raises(UserError, match=words):
            DATASET.discover(root, {"exclude": places})
    table = others / "ff1010bird_metadata_2018.csv"
    table.write_text("itemid,hasbird\nabc-def,1\n")
    with pytest.raises(UserError, match="no numbers in column itemid"):
        DATASET.discover(root, {"exclude": str(table)})


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        ("dev.csv", ",val", ",validation", "44981 is in split 'validation'"),
        ("dev.csv", "Bark,Dog", "Bark,Wolf", "100032 has the label 'Wolf'"),
        ("dev.csv", ",split", "", "but fname, labels, split are needed"),
        ("eval.csv", '37199,"Guitar', "37199\n3", "line 2 has fewer fields than fname, labels, mids"),
        ("vocabulary.csv", "0,Animal,/m/0", "0,Animal", "line 1 has fewer fields"),
        ("vocabulary.csv", "0,Animal,/m/0", "0,Animal, tame,/m/0", "line 1 has more fields than number, class, mid"),
    ],
)
def test_tables_that_are_not_the_published_ones(root: Path, table: str, old: str, new: str, words: str) -> None:
    path = root / "FSD50K.ground_truth" / table
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        DATASET.discover(root, {"clips": "all"})


def test_gaps_are_said_and_another_layout_refused(root: Path) -> None:
    (root / "FSD50K.dev_audio/16399.wav").unlink()
    notes = DATASET.discover(root, {}).notes
    assert any("1 of the 4 files that FSD50K.ground_truth/dev.csv lists are not there" in note for note in notes)
    (root / "FSD50K.eval_audio").rename(root / "eval_audio")
    with pytest.raises(
        UserError, match=r"no FSD50K\.eval_audio here; fsd50k needs this layout: ROOT/FSD50K\.dev_audio"
    ):
        DATASET.discover(root, {"clips": "all"})


def test_packed_clips_keep_all_their_labels(cli: Callable[..., Any], root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("shard", "--dataset", "fsd50k", root, out, "--workers", 1, "--option", "clips=all")
    assert done.code == 0, done.err
    packed = open_shards(out)
    assert packed.manifest.label_names == CLASSES
    labels = {
        row["group"]: {packed.manifest.label_names[label] for label in row["labels"]}
        for row in packed.clips.to_pylist()
    }
    assert labels["100033"] == {"Animal", "Bark", "Dog"} and len(labels) == 6
