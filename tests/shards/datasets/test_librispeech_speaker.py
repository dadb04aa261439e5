"""LibriSpeech as speaker identification: labels, splits and the lines of SPEAKERS.TXT that trap a reader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.librispeech_speaker import DATASET, speaker_subsets

SPEAKERS = """;
; Some pieces of information about speakers; the name may hold a bar
;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-360  | 25.03 | Kristin LeMoine
60   | M | train-clean-100  | 20.18 | |CBW|Simon
103  | F | train-clean-100  | 25.05 | Karen Savage
"""
CHAPTERS = {"60/121082": 5, "103/1240": 10, "103/1241": 5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "LibriSpeech"
    for chapter, utterances in CHAPTERS.items():
        folder = base / "train-clean-100" / chapter
        folder.mkdir(parents=True)
        stem = chapter.replace("/", "-")
        (folder / f"{stem}.trans.txt").write_text(f"{stem}-0000 CHAPTER ONE\n")
        (folder / f"._{stem}-0000.flac").write_bytes(b"macOS")
        for number in range(utterances):
            soundfile.write(folder / f"{stem}-{number:04d}.flac", np.zeros(160), 16000)
    (base / "SPEAKERS.TXT").write_text(SPEAKERS)
    return tmp_path


def test_seeded_split_has_each_chapter_on_both_sides(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert Counter((row.label, row.split) for row in found.rows) == {
        ("60-121082", "train"): 4,
        ("60-121082", "test"): 1,
        ("103-1240", "train"): 8,
        ("103-1240", "test"): 2,
        ("103-1241", "train"): 4,
        ("103-1241", "test"): 1,
    }
    assert all(row.group == row.label and row.fold is None and row.path.is_file() for row in found.rows)
    assert found.rows[0].source == "train-clean-100/103/1240/103-1240-0000.flac"
    assert any("ours" in note and "not the authors' lists" in note for note in found.notes)
    assert any("20 utterances of 2 readers in 3 chapters" in note and "28,539" in note for note in found.notes)
    assert DATASET.discover(root / "LibriSpeech", {"split": "seeded"}).rows == found.rows


def test_label_reader(root: Path) -> None:
    rows = DATASET.discover(root, {"label": "reader"}).rows
    assert {(row.label, row.group) for row in rows} == {("60", "60-121082"), ("103", "103-1240"), ("103", "103-1241")}


def test_a_bar_in_a_name_is_part_of_it(root: Path) -> None:
    table = root / "LibriSpeech" / "SPEAKERS.TXT"
    assert speaker_subsets(table) == {"14": "train-clean-360", "60": "train-clean-100", "103": "train-clean-100"}
    assert not [note for note in DATASET.discover(root, {}).notes if "SPEAKERS.TXT" in note]


def test_readers_are_checked_against_speakers(root: Path) -> None:
    table = root / "LibriSpeech" / "SPEAKERS.TXT"
    table.write_text("19 | F | train-clean-100 | 25.19 | Kara\n60 | M | train-clean-100 | 20.18 | |CBW|Simon\n")
    notes = " ".join(DATASET.discover(root, {}).notes)
    assert "does not list in train-clean-100: 103." in notes and "not here: 19." in notes
    table.write_text("60 | M | train-clean-100\n")
    with pytest.raises(UserError, match="train-clean-100' has 3 fields"):
        DATASET.discover(root, {})
    table.unlink()
    assert any("were not checked" in note for note in DATASET.discover(root, {}).notes)


def test_lists_of_the_authors(root: Path) -> None:
    with pytest.raises(UserError, match=r"no train_split\.txt"):
        DATASET.discover(root, {"split": "files"})
    (root / "train_split.txt").write_text("103-1240-0000\r\n103-1240-0001\r\n60-121082-0003\r\n")
    (root / "test_split.txt").write_text("103-1240-0002\n999-1-0000\n\n")
    found = DATASET.discover(root, {"split": "files"})
    assert {row.path.stem: row.split for row in found.rows} == {
        "103-1240-0000": "train",
        "103-1240-0001": "train",
        "60-121082-0003": "train",
        "103-1240-0002": "test",
    }
    notes = " ".join(found.notes)
    assert "train_split.txt lists 3 utterances; published: 22,830." in notes
    assert "999-1-0000" in notes and "16 utterances left out: in neither list" in notes
    (root / "test_split.txt").write_text("103-1240-0000\n")
    with pytest.raises(UserError, match="has one side"):
        DATASET.discover(root, {"split": "files"})
    (root / "test_split.txt").write_text("")
    (root / "train_split.txt").write_text("999-1-0000\n")
    with pytest.raises(UserError, match="name none of the utterances"):
        DATASET.discover(root, {"split": "files"})


def test_split_by_chapters(root: Path) -> None:
    found = DATASET.discover(root, {"split": "chapters", "label": "reader"})
    assert Counter((row.label, row.group, row.split) for row in found.rows) == {
        ("103", "103-1240", "train"): 10,
        ("103", "103-1241", "test"): 5,
    }
    assert any("1 readers left out (5 utterances)" in note for note in found.notes)
    with pytest.raises(UserError, match="add label=reader"):
        DATASET.discover(root, {"split": "chapters"})


def test_misplaced_files_are_left_out(root: Path) -> None:
    folder = root / "LibriSpeech" / "train-clean-100" / "60" / "121082"
    (folder / "60-121082-0000.flac").rename(folder / "61-121082-0000.flac")
    found = DATASET.discover(root, {})
    assert len(found.rows) == 19 and any(note.startswith("1 FLAC files left out") for note in found.notes)


def test_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label=book: librispeech-speaker takes one of chapter, reader"):
        DATASET.discover(root, {"label": "book"})
    with pytest.raises(UserError, match="protocol=lape: librispeech-speaker has no such option"):
        DATASET.discover(root, {"protocol": "lape"})
    empty = tmp_path / "empty"
    (empty / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match="no utterances"):
        DATASET.discover(empty, {})
    with pytest.raises(UserError, match=r"needs this layout: ROOT/LibriSpeech/train-clean-100"):
        DATASET.discover(empty / "train-clean-100", {})
