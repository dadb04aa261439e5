"""Adapters: the published layout of a data set -> rows to pack. One file each; `DATASETS` names them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import (
    audioset,
    birdsong,
    fsd50k,
    iemocap,
    librispeech_speaker,
    local_files,
    nsynth,
    speechcommands,
    tut2018,
    urbansound8k,
    voxceleb1,
    voxforge,
)
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.datasets.splits import with_validation
from unfused_fast.shards.sources.location import Folder

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
        local_files.FOLDER,
        local_files.CSV,
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
    if not root.is_dir() and DATASETS[name] is not local_files.CSV:
        raise UserError(f"{root}: no such folder; {name} needs this layout: {DATASETS[name].layout}")
    found = DATASETS[name].discover(root, options)
    before = Counter(row.split for row in found.rows)
    # Without a test it is for cross-validation, or for pre-training.
    if "valid" in before or "test" not in before or not DATASETS[name].holds_out:
        return found
    rows = with_validation(found.rows)
    moved = sum(row.split == "valid" for row in rows)
    note = f"No published validation split: {moved:,} of {before['train']:,} train clips are held out, by whole groups."
    if not moved:
        note = "No published validation split, and none could be made: each label of train has one group only."
    return replace(found, rows=rows, notes=[*found.notes, note])


def described() -> list[dict[str, Any]]:
    """What `shard --list --json` prints."""
    hidden = {"find", "holds_out"}
    return [
        {key: value for key, value in vars(dataset).items() if key not in hidden}
        | {
            "classes": dataset.classes,
            "clips": dataset.clips,
            "variants": [vars(variant) for variant in dataset.variants],
        }
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
