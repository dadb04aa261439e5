"""UrbanSound8K: 8,732 street sounds in ten published folds."""

from __future__ import annotations

from collections.abc import Mapping

from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import first_of, listed_and_there, not_published, records_of, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME, FOLDER, TABLE = "urbansound8k", "UrbanSound8K", "metadata/UrbanSound8K.csv"
FOLDS = 10
CLIPS = {"train": 8732}
CLASSES = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
)  # fmt: skip
"""By classID."""


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Everything in split train with its published fold. Group: fsID, the Freesound recording it was cut from."""
    root = first_of(root, (FOLDER, ""))
    flat = TABLE.rpartition("/")[2]
    table = flat if (root / flat).is_file() and not (root / TABLE).is_file() else TABLE
    audio = "" if (root / "fold1").is_dir() else "audio"
    prefix = f"{audio}/" if audio else ""
    require(root, [table, *(f"{prefix}fold{fold}" for fold in range(1, FOLDS + 1))])
    rows, numbered = list[SourceRow](), {(str(number), label) for number, label in enumerate(CLASSES)}
    for record in records_of(root / table, ("slice_file_name", "fsID", "fold", "classID", "class")):
        file, label, number = record["slice_file_name"], record["class"], record["classID"]
        if record["fold"] not in map(str, range(1, FOLDS + 1)) or (number, label) not in numbered:
            problem = f"{file} is in fold {record['fold']} with classID {number} and class {label}"
            raise not_published(root / table, problem)
        fold = int(record["fold"])
        name = f"{prefix}fold{fold}/{file}"
        rows.append(SourceRow(root / name, name, label, "train", record["fsID"], fold))
    return listed_and_there(root, rows, table, [audio], CLIPS)


DATASET = Dataset(
    name=NAME,
    task="street sounds, cross-validation on the ten published folds (column fold)",
    variants=(Variant("ten classes", {}, len(CLASSES), CLIPS),),
    licence="CC BY-NC 3.0",
    source="https://urbansounddataset.weebly.com/urbansound8k.html (Zenodo 1203745)",
    layout="UrbanSound8K/metadata/UrbanSound8K.csv and UrbanSound8K/audio/fold1/ to fold10/, or, as on Kaggle, "
    "UrbanSound8K.csv and fold1/ to fold10/ side by side",
    find=find,
)
