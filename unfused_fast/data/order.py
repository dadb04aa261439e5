"""Which clips a rank reads, in which order.

N clips of the split, n that a rank reads. Order and randomness are ours, not DALI's: each epoch permutes the shards,
and the clips within each, and gives every rank its exact share of every batch, so an epoch covers each clip once, in
the same batches on any number of ranks, and repeats bit for bit.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.distributed import Share
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.shard_files import check_index, index_path

Int64s = NDArray[np.int64]

SEGMENTS = 4096
"""Largest number of index files of an epoch of draws. Ours: DALI opens one in 0.2 ms, so they take about a second."""


class SplitIndex(NamedTuple):
    """The entries of the DALI indexes of all shards of a split, as packed."""

    tars: list[Path]
    lines: list[str]
    """N, one a clip: extension, offset, size and name of each member."""
    shard: Int64s
    """(N,) number of the tar of each clip."""
    clip_ids: Int64s
    """(N,)"""

    def only(self, chosen: NDArray[np.bool_]) -> SplitIndex:
        """The clips for which `chosen` (N,) is true."""
        lines = [self.lines[row] for row in np.flatnonzero(chosen)]
        return SplitIndex(self.tars, lines, self.shard[chosen], self.clip_ids[chosen])


def read_split_index(tars: list[Path], cut_short: bool = False) -> SplitIndex:
    """The clips of a split's shards, whose members' names are their ids. Raises UserError as check_index."""
    lines, shard, clip_ids = list[str](), list[int](), list[int]()
    for number, tar in enumerate(tars):
        samples = check_index(tar, index_path(tar), cut_short)
        lines += index_path(tar).read_text(encoding="ascii").splitlines()[1:]
        shard += [number] * len(samples)
        clip_ids += [int(members[0].name.partition(".")[0]) for members in samples]
    return SplitIndex(tars, lines, np.array(shard, np.int64), np.array(clip_ids, np.int64))


class Reading(NamedTuple):
    """The clips to read, in order."""

    rows: Int64s
    """(n,) rows of the SplitIndex."""
    clip_ids: Int64s
    """(n,)"""
    counters: Int64s
    """(n,) as in Batch."""


def write_indexes(
    folder: Path, index: SplitIndex, rows: Int64s, parts: tuple[Int64s, Int64s] | None
) -> tuple[list[str], list[str]]:
    """Writes index files that list just the clips to read, in order: one for each run of clips of the same shard.

    Args:
        rows: (n,) of the index.
        parts: (n,) first byte and number of bytes to read of each clip's WAV; None: all of it.

    Returns:
        Paths of the shards, of which one may come more than once, and of their index files.

    Raises:
        UserError: a WAV is shorter than its part.
    """
    shards, lines = index.shard[rows].tolist(), [index.lines[row] for row in rows.tolist()]
    if parts is not None:
        bounds = zip(*(array.tolist() for array in parts), strict=True)
        clips = zip(shards, lines, bounds, strict=True)
        lines = [_part_line(index.tars[shard], line, *bound) for shard, line, bound in clips]
    tars, indexes = list[str](), list[str]()
    for shard, run in groupby(zip(shards, lines, strict=True), key=lambda clip: clip[0]):
        texts = [line for _, line in run]
        path = folder / f"{len(tars):06d}.idx"
        path.write_text("\n".join([f"v1.2 {len(texts)}", *texts]) + "\n", encoding="ascii")
        tars.append(str(index.tars[shard]))
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


def rows_of_epoch(
    index: SplitIndex, share: Share, seed: int, epoch: int | None, clusters: Int64s | None, batch_size: int
) -> tuple[Int64s, Int64s]:
    """(n,) rows of the index that a rank reads in an epoch, in order, and (n,) how often each draw's clip was drawn
    before in it.

    Neighbouring draws over clusters are read shard by shard: as many as fit in SEGMENTS index files, at least one
    batch, so that a batch is a fair sample of the draws even in a set of few shards.

    Args:
        epoch: None: as packed.
        clusters: (N,) as of Batches.epoch; None: every clip once.
        batch_size: of a batch on all ranks.
    """
    mine, counts = share.positions(len(index.shard), batch_size), np.bincount(index.shard, minlength=len(index.tars))
    if epoch is None:
        return mine, np.zeros_like(mine)
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    if clusters is None:
        begins = np.cumsum(counts) - counts
        numbers = generator.permutation(len(counts)).tolist()
        order = np.concatenate([begins[number] + generator.permutation(counts[number]) for number in numbers])
        return order[mine], np.zeros_like(mine)
    drawn, times = uniform_draws(clusters, generator)
    together = max(batch_size, -(-len(drawn) * len(counts) // SEGMENTS))
    read = np.lexsort((index.shard[drawn], np.arange(len(drawn)) // together))[mine]
    return drawn[read], times[read]
