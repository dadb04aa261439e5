"""VoxCeleb1 in miniature: one tree or two, the split of identification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import voxceleb1
from unfused_fast.shards.datasets.voxceleb1 import DATASET

LINES = [
    "1 id10001/1zcIwhmdeo4/00001.wav",
    "1 id10001/1zcIwhmdeo4/00002.wav",
    "2 id10001/7gWzIy6yIIk/00001.wav",
    "3 id10270/5r0dWxy17C8/00001.wav",
    "1 id10270/-zb2--cxKLk/00003.wav",
]


@pytest.fixture(params=["wav", "dev and test"])
def root(request: pytest.FixtureRequest, tmp_path: Path, wav: Callable[..., None]) -> Path:
    for line in LINES:
        name = line[2:]
        kept_apart = "test/wav" if name.startswith("id10270") else "dev/wav"
        wav(tmp_path / ("wav" if request.param == "wav" else kept_apart) / name)
    (tmp_path / "iden_split.txt").write_text("\n".join(LINES) + "\n")
    return tmp_path


def test_rows(root: Path) -> None:
    dev, test = ("wav", "wav") if (root / "wav").is_dir() else ("dev/wav", "test/wav")
    found = DATASET.discover(root, {})
    assert [(row.source, row.label, row.split, row.group, row.fold) for row in found.rows] == [
        (f"{dev}/id10001/1zcIwhmdeo4/00001.wav", "id10001", "train", "1zcIwhmdeo4", None),
        (f"{dev}/id10001/1zcIwhmdeo4/00002.wav", "id10001", "train", "1zcIwhmdeo4", None),
        (f"{dev}/id10001/7gWzIy6yIIk/00001.wav", "id10001", "valid", "7gWzIy6yIIk", None),
        (f"{test}/id10270/5r0dWxy17C8/00001.wav", "id10270", "test", "5r0dWxy17C8", None),
        (f"{test}/id10270/-zb2--cxKLk/00003.wav", "id10270", "train", "-zb2--cxKLk", None),
    ]
    assert all(row.path.is_file() for row in found.rows)
    assert found.notes == [
        "iden_split.txt lists 5 clips of 2 speakers; published: 153,516 of 1,251.",
        "3 clips of split train here; published: 138,361.",
        "1 clips of split valid here; published: 6,904.",
        "1 clips of split test here; published: 8,251.",
    ]


def test_gaps_and_shared_videos_are_said(root: Path) -> None:
    (root / "iden_split.txt").write_text("\n".join([*LINES[:1], "3" + LINES[1][1:], *LINES[2:]]) + "\n")
    next(root.rglob("id10001/7gWzIy6yIIk/00001.wav")).unlink()
    notes = DATASET.discover(root, {}).notes
    assert any("1 of the 5 files that iden_split.txt lists are not there" in note for note in notes)
    assert "1 of 3 videos are in more than one of the official splits." in notes


def test_counts_from_memory_are_compared_with_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the five lines were the whole set: its size is right, so the clips of each split must be those listed."""
    monkeypatch.setattr(voxceleb1, "UTTERANCES", 5)
    monkeypatch.setattr(voxceleb1, "SPEAKERS", 2)
    notes = DATASET.discover(root, {}).notes
    assert notes[0] == (
        "iden_split.txt lists 3 train, 1 valid, 1 test: the clips of each split in --list, not verified, are wrong."
    )
    monkeypatch.setattr(voxceleb1, "CLIPS", {"train": 3, "valid": 1, "test": 1})
    assert DATASET.discover(root, {}).notes == []


def test_another_layout(root: Path, tmp_path: Path) -> None:
    (root / "iden_split.txt").write_text("4 id10001/1zcIwhmdeo4/00001.wav\n")
    with pytest.raises(UserError, match="a line must be like 1 id10001"):
        DATASET.discover(root, {})
    with pytest.raises(UserError, match=r"no iden_split\.txt here; voxceleb1 needs this layout:"):
        DATASET.discover(next(path for path in root.iterdir() if path.is_dir()), {})


def test_no_audio_or_half_of_it(tmp_path: Path) -> None:
    (tmp_path / "iden_split.txt").write_text(LINES[0] + "\n")
    with pytest.raises(UserError, match="no wav here, nor dev/wav and test/wav"):
        DATASET.discover(tmp_path, {})
    (tmp_path / "dev/wav").mkdir(parents=True)
    with pytest.raises(UserError, match="no test/wav here"):
        DATASET.discover(tmp_path, {})
