"""What an adapter says of a data set, and what it finds in a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unfused_fast.shards.sources import SourceRow


@dataclass(frozen=True)
class Discovery:
    """What an adapter found in one copy."""

    rows: list[SourceRow]
    """Every clip of the set, with label, split, group and fold where the set has them."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the screen: what differs from the published facts, what was left out and why."""


@dataclass(frozen=True)
class Dataset:
    """One data set of the papers: what `shard --list` prints, and how its published layout becomes rows."""

    name: str
    task: str
    classes: int
    clips: Mapping[str, int]
    """Published clips of each official split; a copy may hold fewer, and that is said on the screen."""
    licence: str
    source: str
    """Where to get it."""
    layout: str
    """What the folder must look like, in a line or two."""
    discover: Callable[[Path, Mapping[str, str]], Discovery]
    """(root, options) -> what is there. Raises UserError for a folder of another layout or an unknown option."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option -> its values, the first the default."""
