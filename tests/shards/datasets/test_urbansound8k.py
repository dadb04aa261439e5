"""UrbanSound8K in miniature: ten folders, mixed formats, folds from the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.urbansound8k import CLASSES, DATASET

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class"


@pytest.fixture
def root(tmp_path: Path, wav: Callable[..., None]) -> Path:
    """A slice of each class, each in its own fold; one recording with two slices; mixed rates, depths, channels."""
    base = tmp_path / "UrbanSound8K"
    lines = [HEADER]
    for number, name in enumerate(CLASSES):
        slices = (0, 3) if number == 3 else (0,)
        for start in slices:
            file = f"{100 + number}-{number}-0-{start}.wav"
            lines.append(f"{file},{100 + number},0.0,4.0,1,{number + 1},{number},{name}")
            wav(base / f"audio/fold{number + 1}" / file, (44100, 48000, 8000)[number % 3], 1 + number % 2, "PCM_24")
        (base / f"audio/fold{number + 1}/.DS_Store").write_bytes(b"mac")
    (base / "metadata").mkdir()
    (base / "metadata/UrbanSound8K.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def _replace(root: Path, old: str, new: str) -> None:
    table = root / "UrbanSound8K/metadata/UrbanSound8K.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_rows(root: Path) -> None:
    for given in (root, root / "UrbanSound8K"):
        found = DATASET.discover(given, {})
        assert [(row.label, row.fold, row.group, row.split) for row in found.rows] == [
            (name, number + 1, str(100 + number), "train")
            for number, name in enumerate(CLASSES)
            for _ in range(2 if number == 3 else 1)
        ]
        assert found.rows[0].source == "audio/fold1/100-0-0-0.wav" and found.rows[0].path.is_file()
        assert found.notes == ["11 clips of split train here; published: 8,732."]


@pytest.mark.parametrize("beside", [True, False])
def test_folds_beside_the_table_as_on_kaggle(root: Path, beside: bool) -> None:
    """Both moves are Kaggle's; a copy may have made one of them only."""
    base = root / "UrbanSound8K"
    published = DATASET.discover(base, {}).rows
    for folder in list((base / "audio").iterdir()):
        folder.rename(base / folder.name)
    (base / "audio").rmdir()
    if beside:
        (base / "metadata/UrbanSound8K.csv").rename(base / "UrbanSound8K.csv")
    rows = DATASET.discover(base, {}).rows
    assert [row.source for row in rows] == [row.source.removeprefix("audio/") for row in published]
    assert [(row.label, row.fold, row.group) for row in rows] == [(row.label, row.fold, row.group) for row in published]
    assert all(row.path.is_file() for row in rows)


def test_a_recording_in_two_folds_and_gaps_are_said(root: Path) -> None:
    _replace(root, "105-5-0-0.wav,105,", "105-5-0-0.wav,104,")
    (root / "UrbanSound8K/audio/fold1/100-0-0-0.wav").unlink()
    notes = DATASET.discover(root, {}).notes
    assert "1 Freesound recordings have slices in more than one fold, such as 104." in notes
    assert any("1 of the 11 files" in note and "audio/fold1/100-0-0-0.wav" in note for note in notes)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",1,0,air_conditioner", ",11,0,air_conditioner", "is in fold 11"),
        (",0,air_conditioner", ",1,air_conditioner", "classID 1 and class air_conditioner"),
        ("fsID", "id", "but slice_file_name, fsID, fold, classID, class are needed"),
    ],
)
def test_a_table_that_is_not_the_published_one(root: Path, old: str, new: str, words: str) -> None:
    _replace(root, old, new)
    with pytest.raises(UserError, match=words):
        DATASET.discover(root, {})


def test_another_layout(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metadata/UrbanSound8K\.csv here; urbansound8k needs this layout:"):
        DATASET.discover(root / "UrbanSound8K/audio", {})
    for path in sorted((root / "UrbanSound8K/audio").rglob("*.wav")):
        path.unlink()
    with pytest.raises(UserError, match=r"none of the 11 files that metadata/UrbanSound8K\.csv lists is there"):
        DATASET.discover(root, {})
    with pytest.raises(UserError, match="urbansound8k has no such option; it has: none"):
        DATASET.discover(root, {"fold": "1"})
