"""NSynth: 305,979 notes of 1,006 instruments, labelled by family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import listed_and_there, not_published, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

CLIPS = {"train": 289205, "valid": 12678, "test": 4096}
FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")
"""By integer id, as remembered from the specification; the json files are compared with it."""


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Label: instrument_family_str. Group: the instrument, the note's name without pitch and velocity.

    test=valid: the official valid split is tested on and the official test split left out, as LAPE probably did.
    """
    splits = {"train": "train", "valid": "valid", "test": "test"}
    if choice["test"] == "valid":
        splits = {"train": "train", "valid": "test"}
    require(root, [f"nsynth-{official}/{part}" for official in splits for part in ("examples.json", "audio")])
    rows, notes = list[SourceRow](), list[str]()
    ids: dict[int, str] = {}
    for official, split in splits.items():
        folder = f"nsynth-{official}"
        table = root / folder / "examples.json"
        try:
            examples = dict(json.loads(table.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise not_published(table, f"holds no notes ({error})") from error
        listed = [_row(root, folder, split, note, about, table, ids) for note, about in sorted(examples.items())]
        found = listed_and_there(root, listed, f"{folder}/examples.json", [f"{folder}/audio"], {split: CLIPS[official]})
        rows += found.rows
        notes += found.notes
    if strange := {number: name for number, name in ids.items() if dict(enumerate(FAMILIES)).get(number) != name}:
        text = ", ".join(f"{number} is {name}" for number, name in sorted(strange.items()))
        notes.append(f"family ids differ from those expected: {text}; labels are the names in the json.")
    for split in dict.fromkeys(splits.values()):
        absent = sorted(set(ids.values()) - {row.label for row in rows if row.split == split})
        if absent:
            notes.append(f"split {split} has no notes of {', '.join(absent)}.")
    if choice["test"] == "valid":
        notes.append("test=valid: the official valid split becomes test here, and the official test split is left out.")
    return Discovery(rows, notes)


def _row(
    root: Folder, folder: str, split: str, note: str, about: dict[str, Any], table: Folder, ids: dict[int, str]
) -> SourceRow:
    """A note's row; notes its family in `ids`. Raises UserError: fields are missing, or contradict each other."""
    try:
        number, family = int(about["instrument_family"]), str(about["instrument_family_str"])
        pitch, velocity = int(about["pitch"]), int(about["velocity"])
    except (KeyError, TypeError, ValueError) as error:
        raise not_published(table, f"note {note} lacks a usable {error}") from error
    if ids.setdefault(number, family) != family or list(ids.values()).count(family) != 1:
        raise not_published(table, f"note {note} gives family {family} the id {number}, but other notes do not")
    instrument, *midi = note.rsplit("-", 2)
    if midi != [f"{pitch:03d}", f"{velocity:03d}"]:
        problem = f"note {note} has pitch {pitch} and velocity {velocity}, but its name must end in them"
        raise not_published(table, f"{problem} as in bass_synth_033-022-050")
    name = f"{folder}/audio/{note}.wav"
    return SourceRow(root / name, name, family, split, instrument)


DATASET = Dataset(
    name="nsynth",
    task="instrument family of a note",
    variants=(
        Variant("official split", {"test": "test"}, len(FAMILIES), CLIPS),
        Variant(
            "tested on valid",
            {"test": "valid"},
            len(FAMILIES),
            {"train": CLIPS["train"], "test": CLIPS["valid"]},
        ),
    ),
    licence="CC BY 4.0",
    source="https://magenta.tensorflow.org/datasets/nsynth (nsynth-{train,valid,test}.jsonwav.tar.gz)",
    layout="nsynth-train/, nsynth-valid/ and nsynth-test/, each with examples.json and audio/<note>.wav",
    find=find,
    options={"test": ("test", "valid")},
    not_verified=("integer ids of the families", "which families are in test", "that LAPE tested on valid"),
)
