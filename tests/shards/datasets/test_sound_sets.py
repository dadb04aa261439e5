"""What only one adapter of sounds or music does: its options, other ways in which people keep its files, its notes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters import found, notes, refused, splits
from miniatures import SEGMENTS, segments_table
from sklearn.model_selection import train_test_split

from unfused_fast.shards.datasets import dataset_rows
from unfused_fast.shards.sets.table import open_shards

Miniature = Callable[[str], Path]


def test_the_valid_split_of_nsynth_can_be_the_test(miniature: Miniature) -> None:
    made = found("nsynth", miniature("nsynth"), test="valid")
    assert splits(made.rows) == {"train": 24, "test": 12}
    assert "Clips of test: 12; published: 12,678." in made.notes
    assert "the official test split is left out" in " ".join(made.notes)


def test_birdsong_is_split_as_lape_does_under_older_names_too(miniature: Miniature) -> None:
    root = miniature("birdsong")
    rows = found("birdsong", root).rows
    listed = [
        (f"{half}/wav/{half}{number}.wav", number % 2) for half in ("ff1010bird", "warblrb10k") for number in range(10)
    ]
    _, test = train_test_split(listed, test_size=0.2, random_state=1, stratify=[bird for _, bird in listed])
    expected = [
        (name, ("absent", "present")[bird], "test" if (name, bird) in test else "train") for name, bird in listed
    ]
    assert [(row.source, row.label, row.split) for row in rows] == expected
    (root / "ff1010bird").rename(root / "ff1010bird_wav")
    table = (root / "ff1010bird_metadata_2018.csv").rename(root / "ff1010bird_wav/ff1010bird_metadata.csv")
    text = table.read_text()
    table.unlink()
    table.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    older = found("birdsong", root).rows
    assert [(row.source.replace("_wav/wav", "/wav"), row.label, row.split) for row in older] == expected


@pytest.mark.parametrize("beside", [True, False])
def test_urbansound_as_on_kaggle(miniature: Miniature, beside: bool) -> None:
    """Both moves are Kaggle's; a copy may have made one of them only."""
    root = miniature("urbansound8k")
    published = found("urbansound8k", root).rows
    for folder in list((root / "audio").iterdir()):
        folder.rename(root / folder.name)
    (root / "audio").rmdir()
    if beside:
        (root / "metadata/UrbanSound8K.csv").rename(root / "UrbanSound8K.csv")
    rows = found("urbansound8k", root).rows
    assert [row.source for row in rows] == [row.source.removeprefix("audio/") for row in published]
    assert [(row.label, row.fold, row.group) for row in rows] == [(row.label, row.fold, row.group) for row in published]


# FSD50K


def test_freesound_recordings_of_other_sets_are_left_out(miniature: Miniature, tmp_path: Path) -> None:
    """UrbanSound8K with slices of 100032 and 100033, freefield1010 with 44981."""
    root, others = miniature("fsd50k"), tmp_path / "other sets"
    urban, bird = others / "UrbanSound8K/metadata/UrbanSound8K.csv", others / "ff1010bird_metadata_2018.csv"
    urban.parent.mkdir(parents=True)
    urban.write_text("slice_file_name,fsID\n100032-3-0-0.wav,100032\n100032-3-0-1.wav,100032\nx,100033\ny,7\n")
    bird.write_text("itemid,datasetid,hasbird\n44981,ff1010bird,1\n8,ff1010bird,0\n")
    made = found("fsd50k", root, clips="all", exclude=str(others))
    assert [row.group for row in made.rows] == ["64760", "16399", "37199"]
    assert made.notes[-2:] == [
        "Clips left out because their recording is one of the 2 in ff1010bird_metadata_2018.csv: 1 of valid.",
        "Clips left out because their recording is one of the 3 in UrbanSound8K.csv: 1 of train, 1 of test.",
    ]
    for places in (str(urban.parent.parent), str(urban), f"{urban}, {urban}"):
        rows = found("fsd50k", root, exclude=places).rows
        assert splits(rows) == {"train": 2, "valid": 1} and "100032" not in {row.group for row in rows}
    refused("name folders or tables, separated by commas", "fsd50k", root, exclude=str(others / "gone"))
    for place in (root, root / "FSD50K.ground_truth/dev.csv"):
        refused("neither UrbanSound8K nor freefield1010", "fsd50k", root, exclude=str(place))
    bird.write_text("itemid,hasbird\nabc-def,1\n")
    refused("no numbers in column itemid", "fsd50k", root, exclude=str(bird))


def test_packed_clips_keep_all_their_labels(cli: Callable[..., Any], miniature: Miniature, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("shard", "--dataset", "fsd50k", miniature("fsd50k"), out, "--workers", 1, "--option", "clips=all")
    assert done.code == 0, done.err
    packed = open_shards(out)
    assert packed.manifest.label_names == ("Animal", "Bark", "Bird", "Dog", "Guitar", "Music")
    labels = {row["group"]: row["labels"] for row in packed.clips.to_pylist()}
    assert labels["100033"] == [0, 1, 3] and len(labels) == 6


# AudioSet


def test_choice_of_tables_and_what_they_lack(miniature: Miniature, wav: Callable[..., None]) -> None:
    root = miniature("audioset")
    assert splits(found("audioset", root, split="balanced").rows) == {"train": 3, "test": 1}
    assert splits(found("audioset", root, split="unbalanced", eval="none").rows) == {"train": 2}
    said = notes("audioset", root)
    assert "balanced: 3 of 3 listed clips are here (100.0%)." in said
    assert "unbalanced: 2 of 3 listed clips are here (66.7%)." in said
    assert "Classes in class_labels_indices.csv: 5; published: 527." in said
    assert "Several classes have one name, to which their mid is added: Clatter." in said
    (root / "metadata").mkdir()
    (root / "class_labels_indices.csv").rename(root / "metadata/class_labels_indices.csv")
    wav(root / "holiday.wav")
    wav(root / "zz copies/--PJHxphWEs.wav")
    lines = {**SEGMENTS["unbalanced_train"], **dict(list(SEGMENTS["balanced_train"].items())[:1])}
    (root / "unbalanced_train_segments.csv").unlink()
    segments_table(root / "unbalanced_train_segments.csv", lines)
    made = found("audioset", root)
    assert len(made.rows) == len({row.source for row in made.rows}) == 6
    said = " ".join(made.notes)
    assert "2 audio files left out: not listed, or a second copy, such as holiday.wav." in said
    assert "1 line left out: its clip is in an earlier one, such as --PJHxphWEs." in said
    for path in root.rglob("*.*"):
        if path.suffix != ".csv":
            path.unlink()
    refused("no audio file is named by a listed video; audioset needs this layout", "audioset", root)


def test_a_sample_is_class_balanced_seeded_and_listed(miniature: Miniature) -> None:
    """30 clips of speech, four of gargling and clatter each."""
    root, given = miniature("audioset"), {"split": "balanced", "sample": "12"}
    lines = {f"speech{number:05d}": "/m/09x0r" for number in range(30)}
    lines |= {f"gargle{number:05d}": "/t/dd00088,/m/09x0r" for number in range(4)}
    lines |= {f"clatter{number:04d}": "/m/0l15bq" for number in range(4)}
    (root / "balanced_train_segments.csv").unlink()
    segments_table(root / "balanced_train_segments.csv", lines)
    for video in lines:
        (root / f"{video}.wav").write_bytes(b"")
    made = found("audioset", root, **given)
    train = [row for row in made.rows if row.split == "train"]
    # By hand: gargling brings speech along, so 4 gargling, 4 clatter, and 4 of speech alone fill the 12.
    labels = Counter(name for row in train for name in row.labels)
    assert labels == {"Speech": 8, "Gargling": 4, "Clatter (/m/0l15bq)": 4}
    assert [row.group for row in made.rows if row.split == "test"] == ["-0RWZT-miFs"]
    text = made.files["audioset-sample.csv"]
    assert text == "ytid\n" + "".join(f"{row}\n" for row in sorted(str(row.group) for row in train))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert made.files["audioset-sample.csv.sha256"] == f"{digest}  audioset-sample.csv\n"
    assert any(digest in note and "12 of 38 train clips, seed 0" in note for note in made.notes)
    assert found("audioset", root, **given) == made and dataset_rows("audioset", root, given).files == made.files
    assert found("audioset", root, **given, seed="1").files != made.files
    (root / "gargle00000.wav").unlink()
    assert len(found("audioset", root, split="balanced", eval="none", sample="37").rows) == 37
    for size in ("38", "0"):
        refused("37 train clips are here; give 1 to 37", "audioset", root, split="balanced", sample=size)
