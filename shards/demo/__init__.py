"""The embedded sets: short enough for a wheel, real enough to learn from. Each folder holds its licence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow
from unfused_fast.shards.sources.source_rows import source_rows

DemoName = Literal["spoken-prompts", "instrument-notes"]
DEMO_NAMES: tuple[DemoName, ...] = get_args(DemoName)


def demo_rows(name: DemoName) -> list[SourceRow]:
    """Rows of one set, with its labels (5 languages; 11 instrument families), splits and groups."""
    return source_rows(Path(__file__).parent / name / "clips.csv")


def union_rows() -> list[SourceRow]:
    """Training rows of both sets without their labels, in split train; names and groups begin with the set's name."""
    return [
        replace(
            row, source=f"{name}/{row.source}", label=None, group=None if row.group is None else f"{name}/{row.group}"
        )
        for name in DEMO_NAMES
        for row in demo_rows(name)
        if row.split == DEFAULT_SPLIT
    ]
