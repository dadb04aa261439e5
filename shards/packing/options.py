"""The options and the sources of a set, in a form that can be stored and compared."""

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
    """The options that, with the rows, determine a set's bytes."""

    codec: Codec = "wav"
    max_seconds: float = 10.0
    """Files more than 5 % longer are cut into equal pieces, each a clip whose group is the file's; see
    layout.WHOLE_UP_TO."""
    min_seconds: float = 0.1
    """Shorter clips are rejected."""
    seed: int = 0
    """Of the shuffle."""
    clips_per_shard: int | None = None
    """Most clips of a tar; None: see layout.plan_shards."""
    max_file_hours: float = LONGEST_FILE_SECONDS / 3600
    """Longer files are rejected. Ours: a malicious file of a megabyte can decode to days of silence."""

    def __post_init__(self) -> None:
        shortest, twice = MINIMUM_SAMPLES / SAMPLE_RATE_HZ, 2 * self.min_seconds
        problem = ""
        if self.codec not in ("wav", "flac"):
            problem = f"codec {self.codec}, but a shard set holds wav or flac"
        elif not (math.isfinite(self.min_seconds) and self.min_seconds >= shortest):
            needed = math.ceil(1e4 * shortest) / 1e4
            problem = f"min_seconds {self.min_seconds:g}, but a log-mel needs {needed} s or more"
        elif not twice <= self.max_seconds <= LONGEST_SECONDS:
            problem = (
                f"max_seconds {self.max_seconds:g}, but it must be between {twice:g}, twice min_seconds, and "
                f"{LONGEST_SECONDS:g}"
            )
        elif self.seed < 0:
            problem = f"seed {self.seed}, but a seed is 0 or more"
        elif self.clips_per_shard is not None and self.clips_per_shard < 1:
            problem = f"{self.clips_per_shard} clips per shard, but at least 1 is needed"
        elif not 0 < self.max_file_hours < math.inf:
            problem = f"max_file_hours {self.max_file_hours:g}, but it must be a finite time above 0"
        if problem:
            raise UserError(f"{problem}; change it, or leave it out for the default")

    @property
    def minimum_samples(self) -> int:
        """Length of the shortest clip, at 16 kHz."""
        return round(self.min_seconds * SAMPLE_RATE_HZ)


def request_of(
    rows: Sequence[SourceRow],
    options: PackOptions,
    dataset: Mapping[str, Any] | None,
    part: tuple[int, int] | None,
) -> dict[str, Any]:
    """What `rows`, sorted by source, and options ask for; rows by name, label, split, group, fold, span, not location.

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
    return {
        **asdict(options),
        "max_seconds": float(options.max_seconds),
        "min_seconds": float(options.min_seconds),
        "dataset": None if dataset is None else json.loads(json.dumps(dict(dataset))),
        "files": len(rows),
        "part": None if part is None else f"{part[0]}/{part[1]}",
        "program": f"unfused-fast {__version__}, schema {SCHEMA_VERSION}",
        "sources": digest.hexdigest(),
    }


def digest_of(request: Mapping[str, Any]) -> str:
    """The sha256 (hex) of a request, of a set or of a part of it: the same request gives the same set."""
    whole = {name: value for name, value in request.items() if name != "part"}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
