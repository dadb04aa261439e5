"""NSynth: 305,979 notes of 1,006 instruments, labelled by family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import against_published, chosen, files_below, listed_and_there, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME = "nsynth"
LAYOUT = "nsynth-train/, nsynth-valid/ and nsynth-test/, each with examples.json and audio/<note>.wav"
OPTIONS = {"test": ("test", "valid")}
"""valid: the official valid split is tested on and the official test split left out, as LAPE probably did."""
CLIPS = {"train": 289205, "valid": 12678, "test": 4096}
FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")
"""By integer id, as far as the specification remembers them; what the json files say is compared with it."""


def discover(root: Folder, given: Mapping[str, str]) -> Discovery:
    """Label: instrument_family_str. Group: the instrument, the note's name without pitch and velocity."""
    options = chosen(NAME, OPTIONS, given)
    splits = {"train": "train", "valid": "valid", "test": "test"}
    if options["test"] == "valid":
        splits = {"train": "train", "valid": "test"}
    folders = {official: f"nsynth-{official}" for official in splits}
    require(
        root, [f"{folder}/{part}" for folder in folders.values() for part in ("examples.json", "audio")], NAME, LAYOUT
    )
    rows: list[SourceRow] = []
    ids: dict[int, str] = {}
    notes = []
    for official, folder in folders.items():
        table = root / folder / "examples.json"
        listed = [_row(root, folder, splits[official], note, about, table, ids) for note, about in _notes(table)]
        there = {f"{folder}/audio/{name}" for name in files_below(root / folder / "audio", ".wav")}
        found = listed_and_there(listed, there, f"{folder}/examples.json", root)
        rows += found.rows
        notes += [*found.notes, *against_published([official] * len(found.rows), {official: CLIPS[official]})]
    if strange := {number: name for number, name in ids.items() if dict(enumerate(FAMILIES)).get(number) != name}:
        text = ", ".join(f"{number} is {name}" for number, name in sorted(strange.items()))
        notes.append(f"family ids are not those that were expected: {text}; labels are the names in the json.")
    for split in dict.fromkeys(splits.values()):
        absent = sorted(set(ids.values()) - {row.label for row in rows if row.split == split})
        if absent:
            notes.append(f"split {split} has no notes of {', '.join(absent)}.")
    if options["test"] == "valid":
        notes.append(
            "test=valid: the official valid split is called test here, and the official test split is left out."
        )
    return Discovery(rows, notes)


def _notes(table: Folder) -> list[tuple[str, dict[str, Any]]]:
    try:
        examples = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: cannot be read ({error}); unpack the archive again") from error
    if not isinstance(examples, dict):
        raise UserError(f"{table}: not an object that is keyed by note; unpack the archive again")
    return sorted(examples.items())


def _row(
    root: Folder, folder: str, split: str, note: str, about: dict[str, Any], table: Folder, ids: dict[int, str]
) -> SourceRow:
    """A note's row; notes its family in `ids`. Raises UserError: fields are missing, or contradict each other."""
    try:
        number, family = int(about["instrument_family"]), str(about["instrument_family_str"])
        pitch, velocity = int(about["pitch"]), int(about["velocity"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{table}: note {note} lacks a usable {error}; unpack the archive again") from error
    if ids.setdefault(number, family) != family or sum(name == family for name in ids.values()) != 1:
        raise UserError(
            f"{table}: note {note} gives family {family} the id {number}, other notes do not; unpack it again"
        )
    instrument, *midi = note.rsplit("-", 2)
    if midi != [f"{pitch:03d}", f"{velocity:03d}"]:
        raise UserError(
            f"{table}: note {note} has pitch {pitch} and velocity {velocity}, but its name must end in them as in "
            "bass_synth_033-022-050; unpack the archive again"
        )
    name = f"{folder}/audio/{note}.wav"
    return SourceRow(root / name, name, family, split, instrument)


DATASET = Dataset(
    name=NAME,
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
    layout=LAYOUT,
    discover=discover,
    options=OPTIONS,
    not_verified=("integer ids of the families", "which families are in test", "that LAPE tested on valid"),
)
