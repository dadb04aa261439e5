"""What study.py runs: sets, size, settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfused_fast.commands.demo import DemoSize, size_values
from unfused_fast.config import Config, PresetName, Stage, differences, preset, with_values
from unfused_fast.evaluation.ablation import STAGES, Ablated
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.shards.sets.table import ShardSet


@dataclass(frozen=True)
class Study:
    """What is run."""

    shards: ShardSet
    targets: list[ShardSet]
    size: DemoSize
    values: dict[str, Any]
    """Fields that are the same for every encoder, laid over the presets and the size."""
    deviations: tuple[Ablated, ...]
    search: bool
    """Whether settings of stage 2 are searched for better ones."""
    out: Path
    pool: RunPool

    def task(self, target: ShardSet) -> str:
        """A set's name: its folder's, with the one above it where two sets have the same."""
        folder = target.directory.resolve()
        alike = {other.directory.resolve() for other in self.targets if other.directory.resolve().name == folder.name}
        return folder.name if alike == {folder} else f"{folder.parent.name}/{folder.name}"

    def config(self, name: PresetName, stage: Stage, seed: int = 0) -> Config:
        """A preset at the study's size; widths are those of AudioNTT, and EfficientNet-B0 keeps its own."""
        chosen = with_values(preset(name, stage), self.values)
        values = size_values(stage, self.size, widths=chosen.model.encoder == "audiontt")
        return with_values(chosen, {**values, **self.values, "train.seed": seed})

    def recommended(self, seed: int = 0) -> dict[Stage, Config]:
        """`recommended` of each stage, which cells of an ablation differ from."""
        return {stage: self.config("recommended", stage, seed) for stage in STAGES}

    def folder(self, name: str, target: ShardSet) -> Path:
        """OUT/<name>/<set>-<digest>."""
        return self.out / name / f"{target.directory.name}-{target.manifest.digest[:8]}"


def sized(study: Study) -> dict[Stage, dict[str, Any]]:
    """Stage -> field -> the value that the study's size gives `recommended` in place of its own."""
    trained: tuple[Stage, ...] = ("pretrain", "distill")
    found = {stage: differences(preset("recommended", stage), study.config("recommended", stage)) for stage in trained}
    return {
        stage: {one.field: one.values[1] for one in listed if one.field not in study.values}
        for stage, listed in found.items()
    }
