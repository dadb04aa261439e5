"""What a worker process does: reads the headers of a block of files, decodes pieces of files, or makes one shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, encode_clip
from unfused_fast.shards.audio.decode import Probe, decode_piece, decode_samples, probe
from unfused_fast.shards.packing.layout import Piece
from unfused_fast.shards.packing.workers import At, Bad
from unfused_fast.shards.sets.shard_files import ShardWriter, clip_json, clip_key
from unfused_fast.shards.sets.table import DONE_SCHEMA, NO_LABEL
from unfused_fast.shards.sources.location import ByteLocation, Location, state_of
from unfused_fast.shards.sources.reasons import Reason, Rejected

Item = TypeVar("Item")
Result = TypeVar("Result")
Columns = dict[str, list[Any]]
"""Values by the names of DONE_SCHEMA."""
Rejection = tuple[str, int, str]
"""Name of the file, number of the piece, text for rejected.csv."""


class Header(NamedTuple):
    """What was found in the header of a file, or why there is none."""

    found: Probe | Rejected
    state: list[int]
    """The file's state_of() just before."""


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """The headers of some files."""

    first: int
    """Number of the first file's row."""
    files: Sequence[Location]
    longest_seconds: float
    """Longer files are rejected."""
    known: Sequence[Header] = ()
    """Read before; kept, but for files that were unreadable then or have changed since."""

    def answer(self, bad: Bad, at: At) -> list[Header]:
        """The header of each file."""
        states = [state_of(file) for file in self.files]
        kept = {
            file: header.found
            for file, state, header in zip(self.files, states, self.known, strict=False)
            if header.state == state and getattr(header.found, "reason", None) is not Reason.UNREADABLE
        }
        found = _each(self.files, bad, at, lambda file: kept.get(file) or probe(file, self.longest_seconds))
        return [Header(*header) for header in zip(found, states, strict=True)]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """Pieces of some files."""

    pieces: Sequence[tuple[Location, int, int, int]]
    """Of each: where its file is, samples of the file per channel at its own rate; [start, stop) at 16 kHz."""

    def answer(self, bad: Bad, at: At) -> list[NDArray[np.int16] | Rejected]:
        """The samples of each piece at 16 kHz, or why they cannot be read."""
        return _each(self.pieces, bad, at, lambda piece: decode_samples(*piece))


def _each(items: Sequence[Item], bad: Bad, at: At, read: Callable[[Item], Result]) -> list[Result | Rejected]:
    answers: list[Result | Rejected] = []
    for number, item in enumerate(items):
        at(number, item.size if isinstance(item, ByteLocation) else 0)
        try:
            answers.append(bad[number] if number in bad else read(item))
        except Rejected as rejected:
            answers.append(rejected)
    return answers


@dataclass(frozen=True)
class DoneShard:
    """A shard that is made."""

    name: str
    clips: pa.Table
    """DONE_SCHEMA: of the clips in it, in order."""
    rejected: list[Rejection]
    bytes: int
    """Of tar and index; 0 where no clip is left, which leaves no file either."""
    origin: tuple[int, ...] = ()
    """Of a shard that merge() took from a part: inodes and times of its files there."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A shard to make."""

    name: str
    tar: Path
    """Temporary name; the index is next to it."""
    pieces: Sequence[Piece]
    first_id: int
    codec: str
    minimum_samples: int
    label_names: Sequence[str]

    def answer(self, bad: Bad, at: At) -> tuple[Columns, list[Rejection], int]:
        """Decodes the pieces and writes them in order -> what is known of the clips, rejections, DoneShard.bytes.

        Ours: no table, because to make one pyarrow imports pandas where that is installed, which takes a process longer
        than a small shard.
        """
        numbers = {name: number for number, name in enumerate(self.label_names)}
        columns: Columns = {name: [] for name in DONE_SCHEMA.names}
        rejected: list[Rejection] = []
        writer = ShardWriter(self.tar)
        try:
            for item, piece in enumerate(self.pieces):
                at(item)
                try:
                    if item in bad:
                        raise bad[item]
                    self._add(writer, piece, numbers, columns)
                except Rejected as rejection:
                    where = f"piece {piece.number + 1} of {piece.pieces}: " if piece.pieces > 1 else ""
                    rejected.append((piece.row.source, piece.number, f"{where}{rejection}"))
            size = writer.close()
        except BaseException:
            writer.give_up()
            raise
        return columns, rejected, size if writer.clips else 0

    def _add(self, writer: ShardWriter, piece: Piece, numbers: dict[str, int], columns: Columns) -> None:
        """Writes one clip and its row of the clips table. Raises Rejected."""
        row = piece.row
        decoded = decode_piece(row.path, piece.frames, piece.start, piece.stop)
        pcm = decoded.pcm
        if len(pcm) < self.minimum_samples:
            raise Rejected(Reason.TOO_SHORT, f"{len(pcm) / SAMPLE_RATE_HZ:.3f} s")
        names = row.labels or ([] if row.label is None else [row.label])
        stored = encode_clip(pcm, self.codec)
        values = {
            "split": row.split,
            "label": NO_LABEL if row.label is None else numbers[row.label],
            "labels": sorted(numbers[name] for name in names),
            "group": row.source if row.group is None else row.group,
            "fold": row.fold,
            "seconds": len(pcm) / SAMPLE_RATE_HZ,
            "samples": len(pcm),
            "constant": bool(pcm.min() == pcm.max()),
            "clipped_share": decoded.clipped_share,
            "file_rate_hz": decoded.rate_hz,
            "file_channels": decoded.channels,
            "source": row.source,
            "sha256": hashlib.sha256(pcm.data).hexdigest(),
            "stored_sha256": hashlib.sha256(stored).hexdigest(),
            "start": piece.start,
        }
        clip_id = self.first_id + writer.clips
        key = clip_key(clip_id)
        text = clip_json({"clip_id": clip_id, **values}, self.label_names)
        writer.add(key, {self.codec: stored, "json": text, "index": key.encode()})
        for name, value in values.items():
            columns[name].append(value)
