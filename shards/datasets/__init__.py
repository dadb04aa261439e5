"""Adapters: the published layout of a data set -> rows to pack. One file each; `DATASETS` names them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import (
    birdsong,
    iemocap,
    librispeech_speaker,
    nsynth,
    speechcommands,
    tut2018,
    urbansound8k,
    voxceleb1,
    voxforge,
)
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.datasets.splits import with_validation

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
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
    )
}
"""By name, in the order in which `shard --list` prints them."""


def dataset_rows(name: str, root: Path, options: Mapping[str, str]) -> Discovery:
    """What the adapter finds in `root`, with a validation split where there is a test but no validation.

    Raises:
        UserError: no such data set, no such folder, another layout, or an unknown option.
    """
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: no such data set; there are: {', '.join(DATASETS)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {name} wants {DATASETS[name].layout}")
    found = DATASETS[name].discover(root, options)
    before = Counter(row.split for row in found.rows)
    if "valid" in before or "test" not in before:  # without a test it is for cross-validation, or without labels
        return found
    rows = with_validation(found.rows)
    moved = sum(row.split == "valid" for row in rows)
    note = f"No published validation split: {moved:,} of {before['train']:,} train clips are held out, by whole groups."
    if not moved:
        note = "No published validation split, and none could be made: each label of train has one group only."
    return Discovery(rows, [*found.notes, note])


def described() -> list[dict[str, Any]]:
    """What `shard --list --json` prints."""
    return [
        {
            "name": dataset.name,
            "task": dataset.task,
            "classes": dataset.classes,
            "clips": dict(dataset.clips),
            "licence": dataset.licence,
            "source": dataset.source,
            "layout": dataset.layout,
            "options": {key: list(values) for key, values in dataset.options.items()},
        }
        for dataset in DATASETS.values()
    ]
