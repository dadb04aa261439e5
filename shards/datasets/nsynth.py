"""NSynth: 305,979 notes of 1,006 instruments, labelled by family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from unfused_fast.errors import unreadable
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import DOWNLOAD, listed_and_there, not_published, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

CLIPS = {"train": 289205, "valid": 12678, "test": 4096}
FAMILIES = 11

_NOTE = re.compile(r"(.+)-[0-9]{3}-[0-9]{3}")
"""Instrument, pitch, velocity."""


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Label: instrument_family_str. Group: the instrument, the note's name without pitch and velocity.

    test=valid: the official valid split is tested on and the official test split left out, as LAPE probably did.
    """
    splits = {"train": "train", "valid": "valid", "test": "test"}
    if choice["test"] == "valid":
        splits = {"train": "train", "valid": "test"}
    require(root, [f"nsynth-{official}/{part}" for official in splits for part in ("examples.json", "audio")])
    rows, notes = list[SourceRow](), list[str]()
    for official, split in splits.items():
        folder = f"nsynth-{official}"
        table = root / folder / "examples.json"
        try:
            examples = dict(json.loads(table.read_text(encoding="utf-8")))
        except OSError as error:
            raise unreadable(table, error, DOWNLOAD) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise not_published(table, f"holds no notes ({error})") from error
        listed = [_row(root, folder, split, note, about, table) for note, about in sorted(examples.items())]
        found = listed_and_there(root, listed, f"{folder}/examples.json", [f"{folder}/audio"], {split: CLIPS[official]})
        rows += found.rows
        notes += found.notes
    if choice["test"] == "valid":
        notes.append("test=valid: the official valid split becomes test here, and the official test split is left out.")
    return Discovery(rows, notes)


def _row(root: Folder, folder: str, split: str, note: str, about: Any, table: Folder) -> SourceRow:
    name, family = _NOTE.fullmatch(note), about.get("instrument_family_str") if isinstance(about, dict) else None
    if name is None or not isinstance(family, str):
        problem = f"note {note} has family {family!r}, but a note must be like bass_synth_033-022-050, its family bass"
        raise not_published(table, problem)
    source = f"{folder}/audio/{note}.wav"
    return SourceRow(root / source, source, family, split, name[1])


DATASET = Dataset(
    name="nsynth",
    task="instrument family of a note",
    variants=(
        Variant("official split", {"test": "test"}, FAMILIES, CLIPS),
        Variant(
            "tested on valid",
            {"test": "valid"},
            FAMILIES,
            {"train": CLIPS["train"], "test": CLIPS["valid"]},
        ),
    ),
    licence="CC BY 4.0",
    source="https://magenta.tensorflow.org/datasets/nsynth (nsynth-{train,valid,test}.jsonwav.tar.gz)",
    layout="nsynth-train/, nsynth-valid/ and nsynth-test/, each with examples.json and audio/<note>.wav",
    find=find,
    options={"test": ("test", "valid")},
    not_verified=("that LAPE tested on valid",),
)
