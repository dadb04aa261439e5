"""Probed rows -> pieces in their final order, laid out in shards, before anything is decoded.

Ours: shards are cut from the plan, not from what turns out to be usable, so that each can be made without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unfused_fast.shards.audio_files import Probe
from unfused_fast.shards.clip_codec import SAMPLE_RATE_HZ
from unfused_fast.shards.sources import SourceRow
from unfused_fast.shards.table import split_rank

SHARD_BYTES = 256 * 2**20
"""Largest tar, in bytes. Ours: a set of 80 GB becomes 300 shards, enough to permute and few enough to handle."""
SHARDS_PER_SPLIT = 16
"""Fewest shards of a split, if `SHARD_CLIPS` allows. Ours: readers permute shards and shuffle within them."""
SHARD_CLIPS = 64
"""Fewest clips of a shard, but for the last. Ours: below that files and their indexes cost more than they bring."""

_TAR_BLOCK = 512
_SIDE_MEMBERS_BYTES = 2 * 2 * _TAR_BLOCK + _TAR_BLOCK
"""Headers and contents of .json and .index, and the audio's header."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A clip to be: a span of a file, in samples at 16 kHz."""

    row: SourceRow
    frames: int
    """Of the whole file, per channel, at its own rate."""
    number: int
    """From 0."""
    pieces: int
    """Of this file; 1: it is not cut."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Consecutive pieces of one split that share a tar."""

    split: str
    pieces: Sequence[Piece]


def plan_pieces(probed: Iterable[tuple[SourceRow, Probe]], max_seconds: float, seed: int) -> list[Piece]:
    """Cuts long files into equal pieces and shuffles all of them, split by split.

    A file of d > max_seconds becomes ceil(d / max_seconds) pieces whose lengths differ by one sample at most.
    Ours: sorted before they are shuffled, so that the order depends on names and seed alone.
    """
    longest = int(max_seconds * SAMPLE_RATE_HZ)
    pieces = []
    for row, probe in probed:
        count = -(-probe.samples // longest)
        cuts = [probe.samples * number // count for number in range(count + 1)]
        pieces += [Piece(row, probe.frames, number, count, cuts[number], cuts[number + 1]) for number in range(count)]
    pieces.sort(key=lambda piece: (piece.row.split, piece.row.source, piece.number))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pieces))
    shuffled = [pieces[place] for place in order]
    return sorted(shuffled, key=lambda piece: split_rank(piece.row.split))


def plan_shards(pieces: Sequence[Piece], clips_per_shard: int | None) -> list[PlannedShard]:
    """Cuts the ordered pieces into shards: at a new split, at `clips_per_shard`, and before `SHARD_BYTES`.

    Args:
        clips_per_shard: None: a sixteenth of the split (`SHARDS_PER_SPLIT`), but at least `SHARD_CLIPS`.
    """
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.row.split] = sizes.get(piece.row.split, 0) + 1
    shards: list[PlannedShard] = []
    current: list[Piece] = []
    current_bytes = 0
    for piece in pieces:
        split, size = piece.row.split, piece_bytes(piece)
        limit = clips_per_shard or max(SHARD_CLIPS, -(-sizes[split] // SHARDS_PER_SPLIT))
        if current and (current[0].row.split != split or len(current) == limit or current_bytes + size > SHARD_BYTES):
            shards.append(PlannedShard(current[0].row.split, current))
            current, current_bytes = [], 0
        current.append(piece)
        current_bytes += size
    if current:
        shards.append(PlannedShard(current[0].row.split, current))
    return shards


def piece_bytes(piece: Piece) -> int:
    """What a piece takes up in a tar as WAV; FLAC takes up to twice less."""
    audio = 44 + 2 * (piece.stop - piece.start)
    return _SIDE_MEMBERS_BYTES + -(-audio // _TAR_BLOCK) * _TAR_BLOCK
