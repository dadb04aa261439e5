"""Your own audio, as two more data sets: a folder, or a CSV that lists it."""

from __future__ import annotations

from collections.abc import Mapping

from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.source_rows import source_rows


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """As `shard FOLDER` and `shard TABLE.csv` find it; labels=folders is --labels-from-folders."""
    if "labels" in choice and not root.is_dir():
        raise WrongLayout(f"{root}: not a folder; for a table use --dataset csv")
    if "labels" not in choice and not root.is_file():
        raise WrongLayout(f"{root}: not a file; for a folder use --dataset folder")
    notes: list[str] = []
    return Discovery(source_rows(root, labels_from_folders=choice.get("labels") == "folders", note=notes.append), notes)


FOLDER = Dataset(
    name="folder",
    task="your own audio, in folders of any depth",
    variants=(
        Variant("no labels", {"labels": "none"}, None, {}),
        Variant("first folder is the label", {"labels": "folders"}, None, {}),
    ),
    licence="yours",
    source="your disk",
    layout="ROOT/**/<any file that libsndfile reads>; with labels=folders the first folder below ROOT, "
    "or below those of the splits (train, valid, test), is the label",
    find=find,
    options={"labels": ("none", "folders")},
    holds_out=False,
)
CSV = Dataset(
    name="csv",
    task="your own audio, listed in a table with labels, splits and groups",
    variants=(Variant("labels of the table", {}, None, {}),),
    licence="yours",
    source="your disk",
    layout="ROOT is a .csv with the columns path[,label or labels,split,group,fold]; paths are relative to its folder",
    find=find,
    holds_out=False,
)
