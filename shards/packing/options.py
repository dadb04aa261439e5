"""How a set is packed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unfused_fast import __version__
from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import LONGEST_FILE_SECONDS, MINIMUM_SAMPLES
from unfused_fast.shards.sets.table import SCHEMA_VERSION
from unfused_fast.shards.sources.row import SourceRow, check_split_name

Codec = Literal["wav", "flac"]

LONGEST_SECONDS = 3600.0
"""Largest max_seconds. Ours: a clip is held in memory whole."""


@dataclass(frozen=True)
class PackOptions:
    """What decides a set's bytes, besides the rows."""

    codec: Codec = "wav"
    max_seconds: float = 10.0
    """Files more than 5 % longer are cut into equal pieces, each a clip whose group is the file's; see
    plan.WHOLE_UP_TO."""
    min_seconds: float = 0.1
    """Shorter clips are rejected."""
    seed: int = 0
    """Of the shuffle."""
    clips_per_shard: int | None = None
    """Most clips of a tar; None: see plan.plan_shards."""
    max_file_hours: float = LONGEST_FILE_SECONDS / 3600
    """Longer files are rejected. Ours: a bomb of a megabyte decodes to days of silence."""

    def __post_init__(self) -> None:
        shortest = MINIMUM_SAMPLES / SAMPLE_RATE_HZ
        checks = (
            (
                self.codec in ("wav", "flac"),
                f"codec {self.codec}, but a shard set holds wav or flac; choose one of them",
            ),
            (
                math.isfinite(self.min_seconds) and self.min_seconds >= shortest,
                f"min_seconds {self.min_seconds:g}, but a log-mel needs {shortest:.4f} s or more; take the default 0.1",
            ),
            (
                2 * self.min_seconds <= self.max_seconds <= LONGEST_SECONDS,
                f"max_seconds {self.max_seconds:g}, but it must lie between {2 * self.min_seconds:g}, twice "
                f"min_seconds, and {LONGEST_SECONDS:g}",
            ),
            (self.seed >= 0, f"seed {self.seed}, but a seed is 0 or more"),
            (
                self.clips_per_shard is None or self.clips_per_shard >= 1,
                f"{self.clips_per_shard} clips per shard, but at least 1 is needed",
            ),
            (self.max_file_hours > 0, f"max_file_hours {self.max_file_hours:g}, but it must be above 0"),
        )
        for fine, message in checks:
            if not fine:
                raise UserError(message)

    @property
    def minimum_samples(self) -> int:
        """Length of the shortest clip, at 16 kHz."""
        return round(self.min_seconds * SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class Request:
    """What a set is made from, in a form that can be kept and compared."""

    values: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The sha256 (hex): the same request gives the same set."""
        return hashlib.sha256(json.dumps(dict(self.values), sort_keys=True).encode()).hexdigest()


def request_of(rows: Sequence[SourceRow], options: PackOptions, dataset: Mapping[str, Any] | None) -> Request:
    """What `rows`, sorted by source, and options ask for; rows by name, label, split, group, fold, span, not by place.

    Raises:
        UserError: no rows, or a split name that cannot be part of a file name.
    """
    if not rows:
        raise UserError("no files to pack; name a folder or a CSV with at least one audio file")
    for split in {row.split for row in rows}:
        check_split_name(split, "the rows to pack")
    digest = hashlib.sha256()
    for row in rows:
        about = (row.source, row.label, row.labels, row.split, row.group, row.fold, row.span)
        digest.update(json.dumps(about).encode() + b"\n")
    asked = {**asdict(options), "max_seconds": float(options.max_seconds), "min_seconds": float(options.min_seconds)}
    known = None if dataset is None else json.loads(json.dumps(dict(dataset)))
    program = f"unfused-fast {__version__}, schema {SCHEMA_VERSION}"
    return Request({**asked, "dataset": known, "files": len(rows), "program": program, "sources": digest.hexdigest()})
