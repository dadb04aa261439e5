"""TUT Urban Acoustic Scenes 2018, development set: 8,640 binaural clips of ten scenes, one published fold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import first_of, lines_of, listed_and_there, not_published, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

FOLDER = "TUT-urban-acoustic-scenes-2018-development"
LISTS = {"train": "evaluation_setup/fold1_train.txt", "test": "evaluation_setup/fold1_evaluate.txt"}
CLIPS = {"train": 6122, "test": 2518}
SCENES = (
    "airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall", "street_pedestrian",
    "street_traffic", "tram",
)  # fmt: skip


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Label: the scene in the list. Group: the location, such as barcelona-0 of airport-barcelona-0-0-a.wav.

    Reads neither meta.csv nor fold1_test.txt, which is fold1_evaluate.txt without labels.
    """
    root = first_of(root, (FOLDER, ""))
    require(root, ["audio", *LISTS.values()])
    rows: dict[str, SourceRow] = {}
    for split, table in LISTS.items():
        for line in lines_of(root / table):
            row = _row(root, line, split, root / table)
            if row.source in rows:
                raise not_published(root / table, f"{row.source} is listed twice")
            rows[row.source] = row
    return listed_and_there(root, list(rows.values()), "evaluation_setup", ["audio"], CLIPS)


def _row(root: Folder, line: str, split: str, table: Folder) -> SourceRow:
    name, _, scene = (part.strip() for part in line.partition("\t"))
    parts = PurePosixPath(name).stem.split("-")
    if scene not in SCENES or parts[0] != scene or len(parts) < 4 or not name.startswith("audio/"):
        wanted = "audio/airport-barcelona-0-0-a.wav<TAB>airport"
        raise not_published(table, f"the line {line!r}, but a line must be like {wanted}")
    return SourceRow(root / name, name, scene, split, "-".join(parts[1:-2]))


DATASET = Dataset(
    name="tut2018",
    task="acoustic scene",
    variants=(Variant("scenes", {}, len(SCENES), CLIPS),),
    licence="non-commercial, see the archive's licence file",
    source="https://zenodo.org/records/1228142 (13 audio zips and the meta zip)",
    layout=f"{FOLDER}/audio/*.wav and {FOLDER}/evaluation_setup/fold1_train.txt and fold1_evaluate.txt",
    find=find,
)
