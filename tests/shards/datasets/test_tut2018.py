"""TUT 2018 in miniature: lists with tabs and no header, locations as groups, no meta.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.tut2018 import DATASET, FOLDER

TRAIN = ["airport-barcelona-0-0-a.wav", "airport-barcelona-0-1-a.wav", "street_traffic-vienna-174-5338-a.wav"]
TEST = ["airport-barcelona-1-15-a.wav", "metro_station-paris-60-1800-a.wav"]


@pytest.fixture
def root(tmp_path: Path, wav: Callable[..., None]) -> Path:
    """As published: fold1_test.txt has no labels; the evaluation list ends lines as Windows does."""
    base = tmp_path / FOLDER
    for name in (*TRAIN, *TEST):
        wav(base / "audio" / name, 48000, 2, "PCM_24")
    setup = base / "evaluation_setup"
    setup.mkdir()
    (setup / "fold1_train.txt").write_text("".join(f"audio/{name}\t{name.split('-')[0]}\n" for name in TRAIN))
    (setup / "fold1_evaluate.txt").write_bytes(
        "".join(f"audio/{name}\t{name.split('-')[0]}\r\n" for name in TEST).encode() + b"\r\n"
    )
    (setup / "fold1_test.txt").write_text("".join(f"audio/{name}\n" for name in TEST))
    return tmp_path


def test_rows(root: Path) -> None:
    for given in (root, root / FOLDER):
        found = DATASET.discover(given, {})
        assert [(row.source, row.label, row.split, row.group, row.fold) for row in found.rows] == [
            ("audio/airport-barcelona-0-0-a.wav", "airport", "train", "barcelona-0", None),
            ("audio/airport-barcelona-0-1-a.wav", "airport", "train", "barcelona-0", None),
            ("audio/street_traffic-vienna-174-5338-a.wav", "street_traffic", "train", "vienna-174", None),
            ("audio/airport-barcelona-1-15-a.wav", "airport", "test", "barcelona-1", None),
            ("audio/metro_station-paris-60-1800-a.wav", "metro_station", "test", "paris-60", None),
        ]
        assert found.notes == [
            "3 clips of split train here; published: 6,122.",
            "2 clips of split test here; published: 2,518.",
        ]


def test_a_location_on_both_sides_another_format_and_gaps_are_said(root: Path, wav: Callable[..., None]) -> None:
    evaluate = root / FOLDER / "evaluation_setup/fold1_evaluate.txt"
    evaluate.write_text("audio/airport-barcelona-0-9-a.wav\tairport\n" + evaluate.read_text())
    wav(root / FOLDER / "audio/airport-barcelona-0-9-a.wav")
    wav(root / FOLDER / "audio" / TRAIN[0], 44100)
    (root / FOLDER / "audio" / TRAIN[2]).unlink()
    notes = DATASET.discover(root, {}).notes
    assert "1 locations are in train and in test, such as barcelona-0." in notes
    assert (
        f"1 of 3 files examined have 44100 Hz, 1 channel(s), PCM_16, such as audio/{TRAIN[0]}, "
        "but 48000, 2, PCM_24 are published." in notes
    )
    assert any("1 of the 6 files that evaluation_setup lists are not there" in note for note in notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("audio/airport-barcelona-0-0-a.wav", "a line must be like"),
        ("filename\tscene_label", "a line must be like"),
        ("audio/airport-barcelona-0-0-a.wav\tbus", "is listed as bus, but its name says airport"),
        (f"audio/{TRAIN[0]}\tairport", "is listed twice"),
    ],
)
def test_lists_that_are_not_the_published_ones(root: Path, line: str, words: str) -> None:
    with (root / FOLDER / "evaluation_setup/fold1_evaluate.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=words):
        DATASET.discover(root, {})


def test_another_layout(root: Path) -> None:
    (root / FOLDER / "evaluation_setup/fold1_evaluate.txt").unlink()
    with pytest.raises(UserError, match=r"no evaluation_setup/fold1_evaluate\.txt here; tut2018 needs this layout:"):
        DATASET.discover(root, {})
