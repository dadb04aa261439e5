"""The description of a data set, and what its adapter finds in a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from unfused_fast.errors import UserError
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NUMBER, PATH = "N", "PATH"
"""Among an option's values: any whole number, any path."""


class WrongLayout(Exception):
    """What a folder lacks of the published layout; `Dataset.discover` adds that layout to the message."""


@dataclass(frozen=True)
class Discovery:
    """What an adapter found in one copy."""

    rows: list[SourceRow]
    """Every clip of the set, with label or labels, split, group and fold where the set has them."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the screen: what differs from the published facts, what was left out and why."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> text of what is to be written next to the shards, such as the list of a sample."""


@dataclass(frozen=True)
class Variant:
    """One task of a data set: what its labels are under some options."""

    name: str
    options: Mapping[str, str]
    """Those that make it; empty: the default."""
    classes: int | None
    """None: as many as there are."""
    clips: Mapping[str, int]
    """Published clips of each split; a copy may hold fewer, and a message then reports it. Empty: no fixed number."""


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
    find: Callable[[Folder, Mapping[str, str]], Discovery]
    """(root, the value of every option) -> what is there. Raises WrongLayout, or UserError for tables that are not the
    published ones.
    """
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option -> its values, the first the default; `NUMBER` and `PATH` are placeholders."""
    not_verified: tuple[str, ...] = ()
    """Facts given here that no copy has confirmed."""

    @property
    def clips(self) -> Mapping[str, int]:
        """Of the default variant."""
        return self.variants[0].clips

    def chosen(self, given: Mapping[str, str]) -> dict[str, str]:
        """Every option's value: the given one, or the first, the default. Raises UserError: no such option or value."""
        for key, value in given.items():
            if key not in self.options:
                there = ", ".join(self.options) or "none"
                raise UserError(f"--option {key}={value}: {self.name} has no such option; it has: {there}")
            named = set(self.options[key]) - {NUMBER, PATH}
            whole = NUMBER in self.options[key] and value.isascii() and value.isdecimal()
            if value not in named and not whole and not (PATH in self.options[key] and value):
                raise UserError(f"--option {key}={value}: {self.name} takes one of {', '.join(self.options[key])}")
        return {key: given.get(key, values[0]) for key, values in self.options.items()}

    def discover(self, root: Folder, given: Mapping[str, str]) -> Discovery:
        """What is in `root`. Raises UserError: another layout, other tables, an unknown option."""
        try:
            return self.find(root, self.chosen(given))
        except WrongLayout as error:
            raise UserError(f"{error}; {self.name} needs this layout: {self.layout}") from None
