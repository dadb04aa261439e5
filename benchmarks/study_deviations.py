"""What each field costs in which the presets `paper` and `authors` leave `recommended`, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from study_setup import Study

from unfused_fast.config import PresetName, Stage, differences, preset, with_values
from unfused_fast.errors import UserError
from unfused_fast.evaluation import ablate, cells_of
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import precision

SIZES = ("cluster.k", "train.batch_size")
"""Fields that the study's size gives every preset alike: the presets' own numbers are tried where there are as many
clips.
"""


def deviating(study: Study, stage: Stage, clips: int) -> dict[str, dict[str, list[PresetName]]]:
    """Field -> value, as text -> which of `paper` and `authors` have it in place of recommended's, at this size, on a
    set of so many train clips.

    A value that goes only with others of its preset, such as the place of a window that is not cut, is left out, and a
    precision that this device has anyway.
    """
    found: dict[str, dict[str, list[PresetName]]] = {}
    base, whole = study.config("recommended", stage), preset("recommended", stage)
    presets: tuple[PresetName, ...] = ("paper", "authors")
    for name in presets:
        fitting = [
            one
            for one in differences(whole, preset(name, stage))
            if one.field in SIZES and one.field not in study.values and one.values[1] <= clips
        ]
        for one in [*differences(base, study.config(name, stage)), *fitting]:
            try:
                changed = with_values(base, {one.field: one.values[1]})
            except UserError:
                continue
            device = study.pool.options.device
            if one.field == "train.amp" and precision(changed, device) == precision(base, device):
                continue
            found.setdefault(one.field, {}).setdefault(str(one.values[1]), []).append(name)
    return found


def deviations(study: Study, target: ShardSet) -> Iterator[dict[str, Any]]:
    """A line for each stage, field and value: what it changes on one set, by an ablation of that stage."""
    configs = study.recommended()
    for stage in study.deviations:
        heard = study.shards if stage == "pretrain" else target
        presets = deviating(study, stage, heard.manifest.splits["train"].clips)
        cells = cells_of(configs, stage, {field: [*values] for field, values in presets.items()}, True)
        out = study.folder(f"deviations-{stage}", target)
        summary = ablate(cells, stage, study.shards, target, out, study.size.seeds, study.pool)
        for row in summary["rows"][1:]:
            ((field, value),) = row["values"].items()
            yield {
                "task": study.task(target),
                "test_clips": target.manifest.splits["test"].clips,
                "stage": stage,
                "settings": row["settings"],
                "presets": presets[field][str(value)],
                "by_seed": row["difference"]["values"],
                "failed": [one["reason"] for one in row["failed"]],
            }
