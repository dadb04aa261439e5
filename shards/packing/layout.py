"""Headers of all files -> every piece in its final order, laid out in shards, before anything is decoded.

N rows, P pieces. Ours: shards are cut from the plan, not from what turns out to be usable, so that each can be made
without the others, by any process of any machine, in any order, at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from tarfile import BLOCKSIZE

import numpy as np
from numpy.typing import NDArray

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, WAV_HEADER_BYTES
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.split_names import split_rank

SHARD_BYTES = 256 * 2**20
"""Largest tar, in bytes. Ours: a set of 80 GB becomes 300 shards, enough to permute and few enough to handle."""
SHARDS_PER_SPLIT = 16
"""Fewest shards of a split, if `SHARD_CLIPS` allows. Ours: readers permute shards and shuffle within them."""
SHARD_CLIPS = 64
"""Fewest clips of a shard, but for the last. Ours: below that the overhead of files and indexes outweighs the gain."""
WHOLE_UP_TO = 1.05
"""A file of up to so many times `max_seconds` is one clip. Ours: a recorder, or MP3's padding, makes 10 s files a hair
longer, and two halves of 5 s differ from the published clips; trimming would lose sound."""

_SIDE_MEMBERS_BYTES = 5 * BLOCKSIZE
"""Headers and contents of .json and .index, and the audio's header: a block of a tar each."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A clip to be: a span of a file, in samples at 16 kHz."""

    row: SourceRow
    frames: int
    """Of the whole file, per channel, at its own rate."""
    number: int
    """From 0."""
    pieces: int
    """Of this row; 1: it is not cut."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Consecutive pieces of one split that go into one tar."""

    name: str
    """Of its files, without their endings."""
    first: int
    """Position of its first piece in the plan: the id of its first clip if no piece before it is rejected."""
    last: int
    """Position after its last piece."""


@dataclass(frozen=True)
class Plan:
    """All pieces in their final order, as columns: (P,) each but `frames`."""

    rows: Sequence[SourceRow]
    frames: NDArray[np.int64]
    """(N,) of each row's file."""
    row: NDArray[np.int64]
    number: NDArray[np.int64]
    pieces: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def pieces_of(self, shard: PlannedShard) -> list[Piece]:
        """The pieces of a shard, in order."""
        columns = (self.row, self.frames[self.row], self.number, self.pieces, self.start, self.stop)
        values = (column[shard.first : shard.last].tolist() for column in columns)
        return [Piece(self.rows[row], *others) for row, *others in zip(*values, strict=True)]

    def digest(self) -> str:
        """The sha256 (hex) of all pieces: of the same rows, the same where their headers are."""
        digest = hashlib.sha256()
        for column in (self.frames, self.row, self.number, self.pieces, self.start, self.stop):
            digest.update(column.astype("<i8").data)
        return digest.hexdigest()

    def bytes(self) -> NDArray[np.int64]:
        """(P,) what each piece takes up in a tar as WAV; FLAC takes half of it or more."""
        audio = WAV_HEADER_BYTES + 2 * (self.stop - self.start)
        sizes: NDArray[np.int64] = _SIDE_MEMBERS_BYTES + -(-audio // BLOCKSIZE) * BLOCKSIZE
        return sizes


def plan_pieces(
    rows: Sequence[SourceRow],
    frames: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    max_seconds: float,
    seed: int,
) -> Plan:
    """Cuts long rows into equal pieces and shuffles all of them, split by split.

    A row of d > WHOLE_UP_TO x max_seconds becomes ceil(d / max_seconds) pieces whose lengths differ by one sample at
    most.
    Ours: sorted before they are shuffled, so that the order depends on names and seed alone.

    Args:
        start, stop: (N,) what is packed of each row, in samples at 16 kHz; nothing where they are equal.
    """
    longest = int(max_seconds * SAMPLE_RATE_HZ)
    named = sorted(np.flatnonzero(stop > start).tolist(), key=lambda row: (rows[row].split, rows[row].source))
    row = np.asarray(named, np.int64)
    length = stop[row] - start[row]
    count = np.where(length <= int(WHOLE_UP_TO * max_seconds * SAMPLE_RATE_HZ), 1, -(-length // longest))
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row, pieces = np.repeat(row, count), np.repeat(count, count)
    length = (stop - start)[row]
    begin, end = (start[row] + length * place // pieces for place in (number, number + 1))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(row))
    splits = sorted({rows[place].split for place in named}, key=split_rank)
    rank = np.asarray([splits.index(rows[place].split) for place in row.tolist()], np.int64)
    order = order[np.argsort(rank[order], kind="stable")]
    return Plan(rows, frames, row[order], number[order], pieces[order], begin[order], end[order])


def plan_shards(plan: Plan, clips_per_shard: int | None) -> list[PlannedShard]:
    """Cuts the pieces into shards: at a new split, at `clips_per_shard`, and before `SHARD_BYTES`.

    Args:
        clips_per_shard: None: a sixteenth of the split (`SHARDS_PER_SPLIT`), but at least `SHARD_CLIPS`.
    """
    sizes, shards, last = plan.bytes(), list[PlannedShard](), 0
    for split, of_split in groupby(plan.rows[row].split for row in plan.row.tolist()):
        first, last = last, last + sum(1 for _ in of_split)
        limit = clips_per_shard or max(SHARD_CLIPS, -(-(last - first) // SHARDS_PER_SPLIT))
        ends = np.concatenate([[0], np.cumsum(sizes[first:last])])
        number, start = 0, first
        while start < last:
            fitting = first - 1 + int(np.searchsorted(ends, ends[start - first] + SHARD_BYTES, side="right"))
            stop = min(start + limit, max(fitting, start + 1), last)
            shards.append(PlannedShard(f"{split}-{number:06d}", start, stop))
            number, start = number + 1, stop
    return shards


def share(shards: Sequence[PlannedShard], part: int, parts: int) -> list[PlannedShard]:
    """Those of `shards` that part `part` of `parts`, counted from 1, makes: consecutive ones, about as many pieces."""
    pieces = shards[-1].last if shards else 0
    low, high = pieces * (part - 1) / parts, pieces * part / parts
    return [shard for shard in shards if low <= (shard.first + shard.last) / 2 < high]
