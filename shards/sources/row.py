"""One file to pack, as every source of files and every adapter of a data set returns it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unfused_fast.errors import UserError
from unfused_fast.shards.sources.listed_path import ListedPath
from unfused_fast.shards.sources.location import Location

DEFAULT_SPLIT = "train"

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One file to pack."""

    path: Location
    """Where its bytes are; never written into a shard set."""
    source: str
    """Its name in the clips table: relative, with forward slashes, the same on every machine. No two rows share it."""
    label: str | None = None
    """None: unlabelled, or of a multi-label set, see `labels`."""
    split: str = DEFAULT_SPLIT
    group: str | None = None
    """What must not be on both sides of a split (speaker, recording); None: the file itself."""
    fold: int | None = None
    """Number of the cross-validation fold, 0 or more; None where the set has none."""
    labels: tuple[str, ...] = ()
    """All labels of a clip of a multi-label set, whose `label` is None."""
    span: tuple[float, float] | None = None
    """Start and end of the part that is packed, in seconds; None: the whole file."""
    begins: float | None = 0.0
    """Of a clip of a shard set: the second of its recording at which it begins; None: the set does not say."""

    def __post_init__(self) -> None:
        """A worker process needs only the location of what an adapter lists as a ListedPath."""
        if isinstance(self.path, ListedPath):
            object.__setattr__(self, "path", self.path.location())


def check_split_name(split: str, where: str) -> None:
    """Raises UserError for a split name that cannot be part of a file name everywhere."""
    if not _SPLIT_NAME.fullmatch(split):
        raise UserError(
            f"{where}: split {split!r}, but a split is named by letters, digits and underscores, such as train"
        )
