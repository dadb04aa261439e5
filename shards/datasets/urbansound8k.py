"""UrbanSound8K: 8,732 street sounds in ten published folds."""

from __future__ import annotations

from collections.abc import Mapping

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import (
    against_published,
    chosen,
    files_below,
    inside,
    listed_and_there,
    records_of,
    require,
)
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME, FOLDER = "urbansound8k", "UrbanSound8K"
LAYOUT = (
    "UrbanSound8K/metadata/UrbanSound8K.csv and UrbanSound8K/audio/fold1/ to fold10/, or, as on Kaggle, "
    "UrbanSound8K.csv and fold1/ to fold10/ side by side"
)
TABLE, AUDIO = "metadata/UrbanSound8K.csv", "audio/"
FOLDS = 10
CLIPS = {"train": 8732}
CLASSES = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)
"""By classID."""


def discover(root: Folder, given: Mapping[str, str]) -> Discovery:
    """Everything in split train with its published fold. Group: fsID, the Freesound recording it was cut from."""
    chosen(NAME, {}, given)
    root = inside(root, FOLDER)
    flat = TABLE.rpartition("/")[2]
    table = flat if (root / flat).is_file() and not (root / TABLE).is_file() else TABLE
    audio = "" if (root / "fold1").is_dir() else AUDIO
    require(root, [table, *(f"{audio}fold{fold}" for fold in range(1, FOLDS + 1))], NAME, LAYOUT)
    records = records_of(root / table, ("slice_file_name", "fsID", "fold", "classID", "class"))
    rows, folds_of = [], dict[str, set[int]]()
    for record in records:
        fold = int(record["fold"]) if record["fold"].isdecimal() else 0
        if not 1 <= fold <= FOLDS:
            raise UserError(
                f"{root / table}: {record['slice_file_name']} is in fold {record['fold']}, but there are 1 to 10"
            )
        number = int(record["classID"]) if record["classID"].isdecimal() else -1
        if number not in range(len(CLASSES)) or CLASSES[number] != record["class"]:
            raise UserError(
                f"{root / table}: {record['slice_file_name']} has classID {record['classID']} and class "
                f"{record['class']}, which are not published together; fetch the file again"
            )
        name = f"{audio}fold{fold}/{record['slice_file_name']}"
        rows.append(SourceRow(root / name, name, record["class"], "train", record["fsID"], fold))
        folds_of.setdefault(record["fsID"], set()).add(fold)
    there = {f"{audio}{name}" for name in files_below(root / audio, ".wav")}
    found = listed_and_there(rows, there, table, root)
    split = [name for name, folds in sorted(folds_of.items()) if len(folds) > 1]
    if split:
        found.notes.append(f"{len(split)} Freesound recordings have slices in more than one fold, such as {split[0]}.")
    found.notes.extend(against_published((row.split for row in found.rows), CLIPS))
    return found


DATASET = Dataset(
    name=NAME,
    task="street sounds, cross-validation on the ten published folds (column fold)",
    variants=(Variant("ten classes", {}, len(CLASSES), CLIPS),),
    licence="CC BY-NC 3.0",
    source="https://urbansounddataset.weebly.com/urbansound8k.html (Zenodo 1203745)",
    layout=LAYOUT,
    discover=discover,
)
