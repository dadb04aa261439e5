"""NSynth in miniature: three json files keyed by note, families by name, instruments as groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.nsynth import DATASET

NOTES = {
    "train": ["bass_synth_033-022-050", "bass_synth_033-060-127", "synth_lead_synthetic_000-100-025"],
    "valid": ["keyboard_acoustic_004-060-025", "vocal_acoustic_001-009-075"],
    "test": ["bass_electronic_018-047-100"],
}
IDS = {"bass": 0, "keyboard": 4, "synth_lead": 9, "vocal": 10}


def _about(note: str) -> dict[str, Any]:
    """As published, with `note` and `instrument`, which are ids of other things than the family."""
    instrument, pitch, velocity = note.rsplit("-", 2)
    family = next(name for name in IDS if note.startswith(name))
    return {
        "note": 201034,
        "note_str": note,
        "instrument": 417,
        "instrument_str": instrument,
        "instrument_family": IDS[family],
        "instrument_family_str": family,
        "instrument_source": 2,
        "pitch": int(pitch),
        "velocity": int(velocity),
        "sample_rate": 16000,
        "qualities": [0] * 10,
    }


@pytest.fixture
def root(tmp_path: Path, wav: Callable[..., None]) -> Path:
    for split, notes in NOTES.items():
        folder = tmp_path / f"nsynth-{split}"
        for note in notes:
            wav(folder / "audio" / f"{note}.wav")
        (folder / "examples.json").write_text(json.dumps({note: _about(note) for note in notes}))
    (tmp_path / "nsynth-train/audio/._bass_synth_033-022-050.wav").write_bytes(b"mac")
    return tmp_path


def _edit(root: Path, note: str, **changes: Any) -> None:
    table = root / "nsynth-train/examples.json"
    examples = json.loads(table.read_text())
    table.write_text(json.dumps({**examples, note: {**examples[note], **changes}}))


def test_rows(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert [(row.source, row.label, row.split, row.group, row.fold) for row in found.rows] == [
        ("nsynth-train/audio/bass_synth_033-022-050.wav", "bass", "train", "bass_synth_033", None),
        ("nsynth-train/audio/bass_synth_033-060-127.wav", "bass", "train", "bass_synth_033", None),
        (
            "nsynth-train/audio/synth_lead_synthetic_000-100-025.wav",
            "synth_lead",
            "train",
            "synth_lead_synthetic_000",
            None,
        ),
        ("nsynth-valid/audio/keyboard_acoustic_004-060-025.wav", "keyboard", "valid", "keyboard_acoustic_004", None),
        ("nsynth-valid/audio/vocal_acoustic_001-009-075.wav", "vocal", "valid", "vocal_acoustic_001", None),
        ("nsynth-test/audio/bass_electronic_018-047-100.wav", "bass", "test", "bass_electronic_018", None),
    ]
    assert all(row.path.is_file() for row in found.rows)
    assert "3 clips of split train here; published: 289,205." in found.notes
    assert "split test has no notes of keyboard, synth_lead, vocal." in found.notes
    assert not any("family ids" in note for note in found.notes)


def test_the_valid_split_can_be_the_test(root: Path) -> None:
    found = DATASET.discover(root, {"test": "valid"})
    assert [row.split for row in found.rows] == ["train", "train", "train", "test", "test"]
    assert "2 clips of split test here; published: 12,678." in found.notes
    assert any("the official test split is left out" in note for note in found.notes)
    with pytest.raises(UserError, match="test=train: nsynth takes one of test, valid"):
        DATASET.discover(root, {"test": "train"})
    with pytest.raises(UserError, match="no such option; it has: test"):
        DATASET.discover(root, {"pitch": "yes"})


def test_ids_that_are_not_the_expected_ones_are_said(root: Path) -> None:
    _edit(root, NOTES["train"][2], instrument_family=7)
    found = DATASET.discover(root, {})
    assert any(note.startswith("family ids are not those that were expected: 7 is synth_lead") for note in found.notes)
    assert found.rows[2].label == "synth_lead"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instrument_family": 4}, "gives family bass the id 4"),
        ({"instrument_family_str": "brass"}, "gives family brass the id 0"),
        ({"pitch": 61}, "has pitch 61"),
        ({"velocity": None}, "lacks a usable"),
    ],
)
def test_json_that_contradicts_itself(root: Path, changes: dict[str, Any], words: str) -> None:
    _edit(root, NOTES["train"][1], **changes)
    with pytest.raises(UserError, match=words):
        DATASET.discover(root, {})


def test_copies_with_gaps_and_other_folders(root: Path, wav: Callable[..., None], tmp_path: Path) -> None:
    (root / "nsynth-train/audio/bass_synth_033-060-127.wav").unlink()
    wav(root / "nsynth-train/audio/mine.wav")
    found = DATASET.discover(root, {})
    assert len(found.rows) == 5
    assert any(
        note.startswith("1 of the 3 files that nsynth-train/examples.json lists are not") for note in found.notes
    )
    assert any("left out, such as nsynth-train/audio/mine.wav" in note for note in found.notes)
    (root / "nsynth-valid/examples.json").unlink()
    with pytest.raises(
        UserError, match=r"no nsynth-valid/examples\.json here; nsynth needs this layout: nsynth-train/"
    ):
        DATASET.discover(root, {})
