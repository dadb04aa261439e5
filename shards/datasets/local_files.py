"""Audio of one's own under the same door as the data sets: a folder, or a CSV that lists it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import chosen
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.source_rows import source_rows


def _discover(name: str, root: Folder, given: Mapping[str, str]) -> Discovery:
    """As `shard` finds it without --dataset; labels=folders is its --labels-from-folders."""
    dataset, other = (FOLDER, CSV) if name == "folder" else (CSV, FOLDER)
    options = chosen(name, dataset.options, given)
    if not (root.is_dir() if dataset is FOLDER else root.is_file()):
        raise UserError(
            f"{root}: not a {'folder' if dataset is FOLDER else 'file'}; {name} wants {dataset.layout}; "
            f"else say --dataset {other.name}"
        )
    notes: list[str] = []
    return Discovery(
        source_rows(root, labels_from_folders=options.get("labels") == "folders", note=notes.append), notes
    )


FOLDER = Dataset(
    name="folder",
    task="audio of your own, in folders of any depth",
    variants=(
        Variant("no labels", {"labels": "none"}, None, {}),
        Variant("first folder is the label", {"labels": "folders"}, None, {}),
    ),
    licence="yours",
    source="your disk",
    layout="ROOT/**/<any file that libsndfile reads>; with labels=folders the first folder below ROOT, "
    "or below those of the splits (train, valid, test), is the label",
    discover=partial(_discover, "folder"),
    options={"labels": ("none", "folders")},
    holds_out=False,
)
CSV = Dataset(
    name="csv",
    task="audio of your own, listed in a table with labels, splits and groups",
    variants=(Variant("labels of the table", {}, None, {}),),
    licence="yours",
    source="your disk",
    layout="ROOT is a .csv with the columns path[,label or labels,split,group,fold]; paths are relative to its folder",
    discover=partial(_discover, "csv"),
    holds_out=False,
)
