"""Audio of one's own under the same door as the data sets: a folder, or a CSV that lists it."""

from __future__ import annotations

from collections.abc import Mapping

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import chosen
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.source_rows import source_rows

FOLDER_OPTIONS = {"labels": ("none", "folders")}
FOLDER_LAYOUT = (
    "ROOT/**/<any file that libsndfile reads>; with labels=folders the first folder below ROOT, "
    "or below those of the splits (train, valid, test), is the label"
)
CSV_LAYOUT = "ROOT is a .csv with the columns path[,label or labels,split,group,fold]; paths are relative to its folder"


def discover_folder(root: Folder, given: Mapping[str, str]) -> Discovery:
    """As `shard FOLDER` finds it; labels=folders is its --labels-from-folders."""
    labels = chosen("folder", FOLDER_OPTIONS, given)["labels"]
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; folder wants {FOLDER_LAYOUT}; for a table say --dataset csv")
    notes: list[str] = []
    return Discovery(source_rows(root, labels_from_folders=labels == "folders", note=notes.append), notes)


def discover_csv(root: Folder, given: Mapping[str, str]) -> Discovery:
    """As `shard TABLE.csv` finds it."""
    chosen("csv", {}, given)
    if not root.is_file():
        raise UserError(f"{root}: not a file; csv wants: {CSV_LAYOUT}; for a folder say --dataset folder")
    notes: list[str] = []
    return Discovery(source_rows(root, note=notes.append), notes)


FOLDER = Dataset(
    name="folder",
    task="audio of your own, in folders of any depth",
    variants=(
        Variant("no labels", {"labels": "none"}, None, {}),
        Variant("first folder is the label", {"labels": "folders"}, None, {}),
    ),
    licence="yours",
    source="your disk",
    layout=FOLDER_LAYOUT,
    discover=discover_folder,
    options=FOLDER_OPTIONS,
    holds_out=False,
)
CSV = Dataset(
    name="csv",
    task="audio of your own, listed in a table with labels, splits and groups",
    variants=(Variant("labels of the table", {}, None, {}),),
    licence="yours",
    source="your disk",
    layout=CSV_LAYOUT,
    discover=discover_csv,
    holds_out=False,
)
