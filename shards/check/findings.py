"""Faults of a set: findings, with identical faults merged into one.

Ours: a finding names three examples and counts the rest, because a set with one fault often has it ten thousand times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

EXAMPLES = 3
"""Clips that a finding names."""


class Kind(StrEnum):
    """What a finding is about, for programs that read it."""

    MANIFEST = "manifest"
    TABLE = "table"
    DIGEST = "digest"
    COUNT = "count"
    REJECTED = "rejected"
    INDEX = "index"
    TAR = "tar"
    ORDER = "order"
    KEY = "key"
    SPLIT = "split"
    JSON = "json"
    AUDIO = "audio"
    SAMPLES = "samples"
    CRASHED = "crashed"
    STRAY_FILE = "stray-file"
    UNLABELLED = "unlabelled"
    UNSEEN_CLASS = "unseen-class"
    RARE_CLASS = "rare-class"
    EMPTY_CLASS = "empty-class"
    GROUP_LEAK = "group-leak"
    AUDIO_LEAK = "audio-leak"
    DUPLICATE = "duplicate"
    LABEL_CONFLICT = "label-conflict"
    DURATION = "duration"
    UNREAD_SPLIT = "unread-split"
    PUBLISHED_COUNT = "published-count"
    CLIPPED = "clipped"
    CONSTANT = "constant"
    QUIET = "quiet"
    DC_OFFSET = "dc-offset"
    NARROW_BAND = "narrow-band"


@dataclass(frozen=True, slots=True)
class Example:
    """A clip that a finding is about, or a position in a tar."""

    text: str
    """What is wrong with this one; may be empty where all are the same."""
    clip: int | None = None
    source: str | None = None
    tar: Path | None = None
    offset: int | None = None
    """In bytes from the start of the tar."""

    def __str__(self) -> str:
        place = [f"clip {self.clip}"] if self.clip is not None else []
        place += [self.source] if self.source is not None else []
        return f"{self.text} ({', '.join(place)})" if self.text and place else self.text or ", ".join(place)


@dataclass(frozen=True)
class Finding:
    """One fault, however many clips have it."""

    kind: Kind
    message: str
    """A complete sentence, with the file it is about."""
    file: str
    """File of the set that is damaged, or that shows the fault."""
    shard: str | None = None
    """Name of the tar of the first example."""
    offset: int | None = None
    """Of the first example, in bytes from the start of the tar."""
    count: int = 1
    clips: tuple[int, ...] = ()
    """Ids of the first examples."""
    sources: tuple[str, ...] = ()
    """Their source files."""


Examples = dict[Kind, list[Example]]
"""What was seen of each kind."""


def finding(kind: Kind, file: Path, summary: str, examples: Iterable[Example] = (), count: int = 1) -> Finding:
    """A finding whose message is `summary`, with `file` before it and the first examples after it."""
    shown = list(examples)[:EXAMPLES]
    texts = [text for example in shown if (text := str(example))]
    more = f" and {count - len(shown)} more" if shown and count > len(shown) else ""
    message = ": ".join(part for part in (str(file), summary, "; ".join(texts) + more) if part)
    tar, offset = next(((each.tar.name, each.offset) for each in shown if each.tar is not None), (None, None))
    ids = tuple(example.clip for example in shown if example.clip is not None)
    sources = tuple(example.source for example in shown if example.source is not None)
    return Finding(kind, message, str(file), tar, offset, count, ids, sources)
