"""TUT Urban Acoustic Scenes 2018, development set: 8,640 binaural clips of ten scenes, one published fold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.datasets.layout import (
    against_published,
    chosen,
    files_below,
    inside,
    lines_of,
    listed_and_there,
    require,
)
from unfused_fast.shards.sources import SourceRow

NAME, FOLDER = "tut2018", "TUT-urban-acoustic-scenes-2018-development"
LAYOUT = f"{FOLDER}/audio/*.wav and {FOLDER}/evaluation_setup/fold1_train.txt and fold1_evaluate.txt"
LISTS = {"train": "evaluation_setup/fold1_train.txt", "test": "evaluation_setup/fold1_evaluate.txt"}
CLIPS = {"train": 6122, "test": 2518}
SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)


def discover(root: Path, given: Mapping[str, str]) -> Discovery:
    """Label: the scene in the list. Group: the location, such as barcelona-0 of airport-barcelona-0-0-a.wav.

    Reads neither meta.csv nor fold1_test.txt, which is fold1_evaluate.txt without labels.
    """
    chosen(NAME, {}, given)
    root = inside(root, FOLDER)
    require(root, ["audio", *LISTS.values()], NAME, LAYOUT)
    rows = [_row(root, line, split, root / table) for split, table in LISTS.items() for line in lines_of(root / table)]
    twice = len(rows) - len({row.source for row in rows})
    if twice:
        raise UserError(
            f"{root}: {twice} files are listed twice in {' and '.join(LISTS.values())}; fetch the lists again"
        )
    there = {f"audio/{name}" for name in files_below(root / "audio", ".wav")}
    found = listed_and_there(rows, there, "evaluation_setup", root)
    shared = {row.group for row in rows if row.split == "train"} & {row.group for row in rows if row.split == "test"}
    if shared:
        found.notes.append(f"{len(shared)} locations are in train and in test, such as {min(map(str, shared))}.")
    found.notes.extend(against_published((row.split for row in found.rows), CLIPS))
    return Discovery(found.rows, [*found.notes, *_unexpected_format(found.rows[0].path)])


def _row(root: Path, line: str, split: str, table: Path) -> SourceRow:
    name, _, scene = (part.strip() for part in line.partition("\t"))
    parts = Path(name).stem.split("-")
    if scene not in SCENES or len(parts) < 4 or not name.startswith("audio/"):
        raise UserError(
            f"{table}: the line {line!r}, but a line must be like audio/airport-barcelona-0-0-a.wav<TAB>airport; "
            "fetch the file again"
        )
    if parts[0] != scene:
        raise UserError(f"{table}: {name} is listed as {scene}, but its name says {parts[0]}; fetch the file again")
    return SourceRow(root / name, name, scene, split, "-".join(parts[1:-2]))


def _unexpected_format(path: Path) -> list[str]:
    """48 kHz, 24 bit, stereo is what DCASE's pages say; one file tells whether it is so."""
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        return []  # packing says what is wrong with it
    found = (info.samplerate, info.channels, info.subtype)
    if found == (48000, 2, "PCM_24"):
        return []
    return [f"{path.name} has {found[0]} Hz, {found[1]} channel(s), {found[2]}, but 48000 Hz, 2, PCM_24 are published."]


DATASET = Dataset(
    name=NAME,
    task="acoustic scene",
    classes=len(SCENES),
    clips=CLIPS,
    licence="non-commercial, see the archive's licence file",
    source="https://zenodo.org/records/1228142 (13 audio zips and the meta zip)",
    layout=LAYOUT,
    discover=discover,
)
