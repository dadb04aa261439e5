"""Which clips a rank reads, in which order.

N clips of the split, of which n are read, B clips in a batch, V partitions. Order and randomness are ours, not DALI's:
a function of (seed, epoch), the same on any number of ranks. The N rows of a split fall into V partitions of
neighbouring rows (data.partitions), and a rank holds V / ranks of them for the whole run (distributed.Share). An epoch
permutes the shards of each partition, and the clips within each shard. The partitions alternate, each in proportion to
its clips; the next B of that sequence are a batch, in order of partitions. So an epoch covers each clip once, a rank
reads only clips that it holds, and the parts of a batch, put together in order of ranks, are the batch of one process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.distributed import Share
from unfused_fast.errors import UserError
from unfused_fast.launch import MEMORY
from unfused_fast.shards.sets.shard_files import check_index, clips_listed, index_path
from unfused_fast.shards.sets.table import ShardSet

Int64s = NDArray[np.int64]

SEGMENTS = 4096
"""Largest number of index files of an epoch of draws, apart from those of each batch's partitions. Ours: DALI opens one
in 0.2 ms, so they take about a second."""


class SplitIndex(NamedTuple):
    """The entries of the DALI indexes of a split, as packed, for clips that this rank holds."""

    tars: list[Path]
    """Of the whole split."""
    lines: list[str]
    """One a clip: extension, offset, size and name of each member."""
    shard: Int64s
    """Number of the tar of each clip."""
    clip_ids: Int64s

    def only(self, chosen: NDArray[np.bool_]) -> SplitIndex:
        """The clips for which `chosen` is true."""
        lines = [self.lines[row] for row in np.flatnonzero(chosen)]
        return SplitIndex(self.tars, lines, self.shard[chosen], self.clip_ids[chosen])


def read_split_index(shards: ShardSet, split: str, own: slice, cut_short: bool = False) -> SplitIndex:
    """The clips of the rows `own` of a split. Of indexes without such clips only the first line is read.

    Raises UserError as check_index, and where an index lists other clips than the table.
    """
    tars, lines, shard, first = shards.shard_paths(split), list[str](), list[int](), shards.first_id(split)
    ends, wanted = np.cumsum([0, *(clips_listed(index_path(tar)) for tar in tars)]).tolist(), shards.clips_in(split)
    fits = ends[-1] == len(wanted)  # else the one to blame may be any
    for number, (tar, (begin, end)) in enumerate(zip(tars, pairwise(ends), strict=True)):
        if fits and not max(begin, own.start) < min(end, own.stop):
            continue
        samples = check_index(tar, index_path(tar), cut_short)
        ids = [int(members[0].name.partition(".")[0]) for members in samples]
        if fits and ids != list(range(first + begin, first + end)):
            raise UserError(
                f"{tar}: its index does not list clips {first + begin} to {first + end - 1}, as the clips table does; "
                "copy the set again or pack it again"
            )
        rows = slice(max(0, own.start - begin), max(0, own.stop - begin))
        lines += index_path(tar).read_text(encoding="ascii").splitlines()[1:][rows]
        shard += [number] * len(samples[rows])
    if not fits:
        raise UserError(
            f"{shards.directory}: the indexes of split {split} list {ends[-1]} clips, the manifest {len(wanted)}; "
            "pack it again"
        )
    return SplitIndex(tars, lines, np.array(shard, np.int64), np.arange(first + own.start, first + own.stop))


class Reading(NamedTuple):
    """The clips to read, in order."""

    rows: Int64s
    """(n,) rows of the SplitIndex."""
    clip_ids: Int64s
    """(n,)"""
    counters: Int64s
    """(n,) as in Batch."""
    sizes: Int64s
    """(batches, ranks) clips of each batch on each rank; of whole clips no batch."""


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
        tars.append(str(index.tars[shard]))
        indexes.append(f"{folder}/{len(tars):06d}.idx")
        with Path(indexes[-1]).open("wb", buffering=0) as file:
            file.write("\n".join([f"v1.2 {len(texts)}", *texts, ""]).encode("ascii"))
    return tars, indexes


def index_folder(index: SplitIndex, rows: Int64s) -> Path | None:
    """Where write_indexes should write: memory where there is room, because a disk's file system takes up to half a
    millisecond for each file; None: the system's temporary folder.
    """
    files = 1 + np.count_nonzero(np.diff(index.shard[rows]))
    size = 4096 * files + sum(len(index.lines[row]) for row in rows.tolist())
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 * size
    return MEMORY if in_memory else None


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


def batches_of(groups: Int64s, partitions: int, batch_size: int) -> Int64s:
    """(n,) ascending numbers, block * V + partition -> (n,) number of the batch of each entry.

    Block after block; within a block the partitions alternate, each in proportion to its entries and keeping their
    order. Those that follow each other are far apart, by van der Corput's order, so that ranks, which hold neighbouring
    partitions, have equal parts of any stretch, up to a few clips.
    """
    reversed_bits = [f"{partition:064b}"[::-1] for partition in range(partitions)]
    phase = np.argsort(np.argsort(reversed_bits)) / partitions
    _, begins, counts = np.unique(groups, return_index=True, return_counts=True)
    number = np.arange(len(groups)) - np.repeat(begins, counts)
    block, partition = np.divmod(groups, partitions)
    place = block + (number + phase[partition]) / np.repeat(counts, counts)
    batches = np.empty_like(groups)
    batches[np.argsort(place, kind="stable")] = np.arange(len(groups)) // batch_size
    return batches


class EpochOrder(NamedTuple):
    """What a rank reads in an epoch, m clips."""

    entries: Int64s
    """(m,) of the clips that the rank may read, in order."""
    times: Int64s
    """(m,) how often each draw's clip was drawn before in the epoch."""
    sizes: Int64s
    """(batches, ranks) clips of each batch on each rank."""


class Order:
    """The order of the n clips of a split that are read, seen from one rank."""

    def __init__(self, clips: int, rows: Int64s, share: Share, partitions: int, batch_size: int) -> None:
        """Args:
            clips: N.
            rows: (n,) of the split that are read, ascending.
            partitions: V; a row is in the partition that it has among all N, whichever are read.
            batch_size: of a batch on all ranks.

        Raises UserError unless the number of ranks divides V.
        """
        self.share, self.partitions, self.batch_size, self.rows = share, partitions, batch_size, rows
        self._own = share.of_partitions(partitions)
        bounds = np.arange(partitions + 1) * clips // partitions
        self._begins = np.searchsorted(rows, bounds)
        """(V + 1,) first entry of `rows` of each partition."""
        self._partition = np.repeat(np.arange(partitions), np.diff(self._begins))
        self._batch = batches_of(self._partition, partitions, batch_size)
        self.sizes = self._sizes(self._partition, self._batch)
        """(batches, ranks) clips of each batch on each rank in an epoch that reads every clip once."""
        self.own = slice(self._begins[self._own.start], self._begins[self._own.stop])
        """The entries of `rows` that this rank may read."""

    def _sizes(self, partition: Int64s, batch: Int64s) -> Int64s:
        ranks, batches = self.share.world_size, -(-len(batch) // self.batch_size)
        owner = partition * ranks // self.partitions
        return np.bincount(batch * ranks + owner, minlength=batches * ranks).reshape(batches, ranks)

    def every_clip(self, shard: Int64s, seed: int, epoch: int) -> EpochOrder:
        """Each clip once. `shard`: number of the tar of each clip of this rank."""
        begins = self._begins - self.own.start
        orders = [np.arange(0)]
        for partition in self._own:
            generator = np.random.Generator(np.random.PCG64([seed, epoch, partition]))
            first, stop = begins[partition], begins[partition + 1]
            _, starts, counts = np.unique(shard[first:stop], return_index=True, return_counts=True)
            numbers = generator.permutation(len(counts)).tolist()
            orders += [first + starts[number] + generator.permutation(counts[number]) for number in numbers]
        entries = np.concatenate(orders)[np.argsort(self._batch[self.own], kind="stable")]
        return EpochOrder(entries, np.zeros_like(entries), self.sizes)

    def draws(self, clusters: Int64s, tars: int, seed: int, epoch: int) -> EpochOrder:
        """As many draws, evenly over the clusters (n,) of the clips that are read; each rank takes those of its clips.

        Neighbouring draws are read shard by shard, of `tars` of them: as many as fit in SEGMENTS index files, at least
        one batch, so that a batch is a fair sample of the draws even in a set of few shards.
        """
        drawn, times = uniform_draws(clusters, np.random.Generator(np.random.PCG64([seed, epoch])))
        together = max(self.batch_size, -(-len(drawn) * tars // SEGMENTS))
        block = np.arange(len(drawn)) // together
        read = np.lexsort((drawn, block))  # a shard's clips are neighbours
        drawn, times, partition = drawn[read], times[read], self._partition[drawn[read]]
        batch = batches_of(block * self.partitions + partition, self.partitions, self.batch_size)
        order = np.lexsort((partition, batch))
        mine = order[(self.own.start <= drawn[order]) & (drawn[order] < self.own.stop)]
        return EpochOrder(drawn[mine] - self.own.start, times[mine], self._sizes(partition, batch))


def recut(blocks: Iterator[list[Tensor]], parts: list[slice]) -> Iterator[list[Tensor]]:
    """Rows in blocks of any size -> the same rows in parts: without a copy where parts and blocks are equal."""
    held = list[list[Tensor]]()
    for part in parts:
        size = part.stop - part.start
        while sum(len(block[0]) for block in held) < size:
            held.append(next(blocks))
        joined = held[0] if len(held) == 1 else [torch.cat(each) for each in zip(*held, strict=True)]
        yield [each[:size] for each in joined]
        held = [[each[size:] for each in joined]] if len(joined[0]) > size else []
    assert next(blocks, None) is None
