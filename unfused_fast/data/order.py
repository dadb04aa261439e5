"""Which clips a rank reads, in which order.

N clips of the split. Order and randomness are ours, not DALI's: each epoch permutes the shards, and the clips within
each, and gives every rank its exact share of every batch, so an epoch covers each clip once, in the same batches on any
number of ranks, and repeats bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.distributed import Share
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.shard_files import check_index, index_path

Int64s = NDArray[np.int64]
Rows = list[tuple[int, Int64s]]
"""Shards by number, each with the clips within it to read, in reading order; a shard may come more than once."""

SEGMENTS = 4096
"""Largest number of index files of an epoch of draws. Ours: DALI opens one in 0.2 ms, so they take about a second."""


class ShardIndex(NamedTuple):
    """A shard and the entries of its DALI index."""

    tar: Path
    lines: list[str]
    """One a clip: extension, offset, size and name of each member."""
    clip_ids: Int64s
    """Of each line."""

    def only(self, chosen: NDArray[np.bool_]) -> ShardIndex:
        """The lines for which `chosen` is true."""
        return ShardIndex(self.tar, [self.lines[row] for row in np.flatnonzero(chosen)], self.clip_ids[chosen])


def read_shard_index(tar: Path, cut_short: bool = False) -> ShardIndex:
    """The clips of a shard, whose members' names are their ids. Raises UserError as check_index."""
    samples = check_index(tar, index_path(tar), cut_short)
    lines = index_path(tar).read_text(encoding="ascii").splitlines()[1:]
    return ShardIndex(tar, lines, np.array([int(members[0].name.partition(".")[0]) for members in samples], np.int64))


class Reading(NamedTuple):
    """The clips to read, in order."""

    rows: Rows
    clip_ids: Int64s
    """(N,)"""
    counters: Int64s
    """(N,) as in Batch."""

    def after(self, clips: int) -> Reading:
        """The rest, after that many clips."""
        left = np.arange(clips, len(self.clip_ids))
        return Reading(taken(self.rows, left), self.clip_ids[clips:], self.counters[clips:])


def write_indexes(
    folder: Path, shards: list[ShardIndex], rows: Rows, parts: tuple[Int64s, Int64s] | None
) -> tuple[list[str], list[str]]:
    """Writes an index file for each shard that lists just the clips to read, in order.

    Args:
        parts: (N,) first byte and number of bytes to read of each clip's WAV; None: all of it.

    Returns:
        Paths of the shards and of their index files.

    Raises:
        UserError: a WAV is shorter than its part.
    """
    tars, indexes, position = list[str](), list[str](), 0
    for number, (shard, part) in enumerate(rows):
        tar, lines, _ = shards[shard]
        texts = [lines[row] for row in part.tolist()]
        if parts is not None:
            bounds = (array[position : position + len(texts)].tolist() for array in parts)
            texts = [_part_line(tar, *clip) for clip in zip(texts, *bounds, strict=True)]
            position += len(texts)
        path = folder / f"{number:06d}.idx"
        path.write_text("\n".join([f"v1.2 {len(texts)}", *texts]) + "\n", encoding="ascii")
        tars.append(str(tar))
        indexes.append(str(path))
    return tars, indexes


def _part_line(tar: Path, text: str, begin: int, size: int) -> str:
    """A line of an index whose last member, the audio, begins later and is shorter."""
    others, offset, whole, name = text.rsplit(" ", 3)
    if begin + size > int(whole):
        raise UserError(
            f"{tar}: {name} has {whole} bytes, but the clips table needs at least {begin + size}; run unfused-fast "
            f"check {tar.parent}"
        )
    return f"{others} {int(offset) + begin} {size} {name}"


def epoch_order(counts: list[int], generator: np.random.Generator | None) -> Rows:
    """An epoch's order: shards and the clips of each permuted; without a generator, as packed.

    `counts` are the clips of each shard.
    """
    numbers = range(len(counts)) if generator is None else generator.permutation(len(counts)).tolist()
    return [
        (number, np.arange(counts[number]) if generator is None else generator.permutation(counts[number]))
        for number in numbers
    ]


def taken(rows: Rows, positions: Int64s) -> Rows:
    """The part of an order at these positions, which ascend."""
    found, begin = Rows(), 0
    for number, part in rows:
        first, stop = np.searchsorted(positions, (begin, begin + len(part)))
        if first < stop:
            found.append((number, part[positions[first:stop] - begin]))
        begin += len(part)
    return found


def uniform_draws(clusters: Int64s, generator: np.random.Generator) -> tuple[Int64s, Int64s]:
    """(N,) cluster of each row -> (N,) rows in the order of an epoch that draws each non-empty cluster equally often,
    and (N,) how many times the draw's row has been drawn before.

    Of K' non-empty clusters each gets N // K' draws, and N % K' of them, chosen at random, one more; within a cluster
    every row is drawn once before any is drawn again. Source: DECAR section 3 (uniform over pseudo-labels). Ours: equal
    counts and no needless repeats; independent draws would leave out a third of the clips even with equal clusters.
    """
    count = len(clusters)
    grouped = np.lexsort((generator.permutation(count), clusters))
    _, sizes = np.unique(clusters, return_counts=True)
    quotas = np.full(len(sizes), count // len(sizes))
    quotas[generator.permutation(len(sizes))[: count % len(sizes)]] += 1
    number = np.arange(count) - np.repeat(np.cumsum(quotas) - quotas, quotas)  # of a draw within its cluster
    size = np.repeat(sizes, quotas)
    rows = grouped[np.repeat(np.cumsum(sizes) - sizes, quotas) + number % size]
    order = generator.permutation(count)
    return rows[order], (number // size)[order]


def drawn_order(counts: list[int], rows: Int64s, batch_size: int) -> tuple[Rows, Int64s]:
    """Draws `rows`, which count the clips of all shards in order -> reading order, and the positions in `rows` that it
    reads. `counts` are the clips of each shard.

    Neighbouring draws are read shard by shard: as many as fit in SEGMENTS index files, at least one batch, so that a
    batch is a fair sample of the draws even in a set of few shards.
    """
    ends = np.cumsum(counts)
    together = max(batch_size, -(-len(rows) * len(counts) // SEGMENTS))
    shard = np.searchsorted(ends, rows, side="right")
    positions = np.arange(len(rows))
    positions = positions[np.lexsort((positions, shard, positions // together))]
    order = []
    for part in np.split(positions, np.flatnonzero(np.diff(shard[positions])) + 1):
        number = int(shard[part[0]])
        order.append((number, rows[part] - (ends[number] - counts[number])))
    return order, positions


def rows_of_epoch(
    counts: list[int], share: Share, seed: int, epoch: int | None, clusters: Int64s | None, batch_size: int
) -> tuple[Rows, Int64s]:
    """What a rank reads in an epoch, as in Batches.reading, and (n,) how often each draw's clip was drawn before in it.

    `counts` are the clips of each shard, `batch_size` those of a batch on all ranks. Epoch None: as packed.
    """
    mine = share.positions(sum(counts), batch_size)
    generator = None if epoch is None else np.random.Generator(np.random.PCG64([seed, epoch]))
    if generator is None or clusters is None:
        return taken(epoch_order(counts, generator), mine), np.zeros(len(mine), np.int64)
    drawn, times = uniform_draws(clusters, generator)
    rows, positions = drawn_order(counts, drawn, batch_size)
    return taken(rows, mine), times[positions[mine]]
