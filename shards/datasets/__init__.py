"""Adapters: the published layout of a data set -> rows to pack. One file each; `DATASETS` names them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import (
    audioset,
    birdsong,
    fsd50k,
    iemocap,
    librispeech_speaker,
    nsynth,
    speechcommands,
    tut2018,
    urbansound8k,
    voxceleb1,
    voxforge,
)
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.sources.listed_path import ListedPath
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.shards.sources.splits import with_validation


def find_own(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Your own audio, as `shard FOLDER` and `shard TABLE.csv` find it; labels=folders is --labels-from-folders."""
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
    find=find_own,
    options={"labels": ("none", "folders")},
)
CSV = Dataset(
    name="csv",
    task="your own audio, listed in a table with labels, splits and groups",
    variants=(Variant("labels of the table", {}, None, {}),),
    licence="yours",
    source="your disk",
    layout="ROOT is a .csv with the columns path[,label or labels,split,group,fold]; paths are relative to its folder",
    find=find_own,
)
DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        audioset.DATASET,
        fsd50k.DATASET,
        librispeech_speaker.DATASET,
        voxceleb1.DATASET,
        speechcommands.DATASET_V1,
        speechcommands.DATASET_V2,
        voxforge.DATASET,
        iemocap.DATASET,
        nsynth.DATASET,
        tut2018.DATASET,
        urbansound8k.DATASET,
        birdsong.DATASET,
        FOLDER,
        CSV,
    )
}
"""By name, in the order in which `shard --list` prints them."""


def dataset_rows(name: str, root: Folder, options: Mapping[str, str]) -> Discovery:
    """What the adapter finds in `root`, with a validation split where there is a test but no validation.

    Raises:
        UserError: no such data set, no such folder, another layout, or an unknown option.
    """
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: no such data set; there are: {', '.join(DATASETS)}")
    if not root.is_dir() and DATASETS[name] is not CSV:
        raise UserError(f"{root}: no such folder; {name} needs this layout: {DATASETS[name].layout}")
    found = DATASETS[name].discover(root, options)
    if isinstance(root, ListedPath) and (refused := root.listing.not_read):
        named = "; ".join([*(f"{member} ({why})" for member, why in refused[:5]), *(["..."] if refused[5:] else [])])
        note = f"{counted(len(refused), 'file')} in archives not read: {named}."
        found = replace(found, notes=[note, *found.notes])
    splits = Counter(row.split for row in found.rows)
    # Without a test it is for cross-validation, or for pre-training.
    if "valid" in splits or "test" not in splits or DATASETS[name] in (FOLDER, CSV):
        return found
    rows = with_validation(found.rows)
    moved = sum(row.split == "valid" for row in rows)
    note = f"No published validation split: of {splits['train']:,} clips of train {moved:,} held out, by whole groups."
    if not moved:
        note = "No published validation split, and none could be made: each label of train has one group only."
    return replace(found, rows=rows, notes=[*found.notes, note])


def described() -> list[dict[str, Any]]:
    """What `shard --list --json` prints."""
    return [
        {name: value for name, value in vars(dataset).items() if name != "find"}
        | {"classes": dataset.variants[0].classes, "clips": dataset.clips}
        | {"variants": [vars(variant) for variant in dataset.variants]}
        for dataset in DATASETS.values()
    ]


def described_as_text() -> str:
    """What `shard --list` prints."""
    lines = []
    for dataset in DATASETS.values():
        lines.append(f"{dataset.name}: {dataset.task}")
        for variant in dataset.variants:
            options = "".join(f" --option {key}={value}" for key, value in variant.options.items())
            classes = "your" if variant.classes is None else f"{variant.classes:,}"
            clips = ", ".join(f"{count:,} {split}" for split, count in variant.clips.items()) or "no fixed number"
            lines.append(f"  {variant.name}: {classes} classes; clips: {clips}{options and ';'}{options}")
        lines += [f"  licence: {dataset.licence}", f"  from: {dataset.source}", f"  layout: {dataset.layout}"]
        lines += [f"  --option {option}={'|'.join(values)}" for option, values in dataset.options.items()]
        if dataset.not_verified:
            lines.append(f"  not verified: {'; '.join(dataset.not_verified)}")
    return "\n".join(lines)
