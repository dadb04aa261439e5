"""What an adapter says of a data set, and what it finds in a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NUMBER, PATH = "N", "PATH"
"""Among an option's values: any whole number, any path."""


@dataclass(frozen=True)
class Discovery:
    """What an adapter found in one copy."""

    rows: list[SourceRow]
    """Every clip of the set, with label or labels, split, group and fold where the set has them."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the screen: what differs from the published facts, what was left out and why."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> text of what is to be written beside the shards, such as the list of a sample."""


@dataclass(frozen=True)
class Variant:
    """One task of a data set: what its labels are under some options."""

    name: str
    options: Mapping[str, str]
    """Those that make it; empty: the default."""
    classes: int | None
    """None: as many as there are."""
    clips: Mapping[str, int]
    """Published clips of each split; a copy may hold fewer, and that is said on the screen. Empty: no fixed number."""


@dataclass(frozen=True)
class Dataset:
    """One data set: what `shard --list` prints, and how its published layout becomes rows."""

    name: str
    task: str
    variants: tuple[Variant, ...]
    """The default first."""
    licence: str
    source: str
    """Where to get it."""
    layout: str
    """What the folder must look like, in a line or two."""
    discover: Callable[[Folder, Mapping[str, str]], Discovery]
    """(root, options) -> what is there. Raises UserError for a folder of another layout or an unknown option."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option -> its values, the first the default; `NUMBER` and `PATH` stand for many."""
    not_verified: tuple[str, ...] = ()
    """What is said here and no copy has confirmed; what can be is compared with the files at run time."""
    holds_out: bool = True
    """Whether a tenth of train becomes valid where there is a test and no validation split."""

    @property
    def classes(self) -> int | None:
        """Of the default variant."""
        return self.variants[0].classes

    @property
    def clips(self) -> Mapping[str, int]:
        """Of the default variant."""
        return self.variants[0].clips
