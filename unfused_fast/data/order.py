"""Which clips a rank reads, in which order, and what each random crop and mask takes of them.

B clips in a batch, N clips of the split, M masks of a view. Order and randomness are ours, not DALI's: each epoch
permutes the shards, and the clips within each, and hands every rank its exact share of every batch, so an epoch covers
each clip once, in the same batches on any number of ranks, and repeats bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.data.randomness import Stream, uniform
from unfused_fast.distributed import Share
from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import WAV_HEADER_BYTES
from unfused_fast.shards.sets.shard_files import check_index

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


class Line(NamedTuple):
    """One clip of a DALI index."""

    clip_id: int
    text: str


BEYOND = 1 << 29
"""First sample of an edge of zeros: behind every clip, where the reader finds zeros. 9 hours."""


class Crop(NamedTuple):
    """Which samples of each clip a crop takes: head, body, tail, each possibly empty; head and tail are read backwards,
    which reflects, or lie BEYOND the clip. All (B,).
    """

    head_start: Int32s
    head: Int32s
    body_start: Int32s
    body: Int32s
    tail_start: Int32s
    tail: Int32s

    def moved(self, origin: Int64s) -> Crop:
        """The same crops where sample 0 of each clip lies at `origin` (B,)."""
        starts = (self.head_start, self.body_start, self.tail_start)
        head, body, tail = (start + origin for start in starts)
        return Crop(*_int32(head, self.head, body, self.body, tail, self.tail))

    def after(self, clips: int) -> Crop:
        """Those that are left after that many clips."""
        return Crop(*(array[clips:] for array in self))

    def silenced(self, silent: NDArray[np.bool_]) -> Crop:
        """The same crops, of which the `silent` ones (B,) are all zeros."""
        head, body, tail = (
            np.where(silent, BEYOND, start) for start in (self.head_start, self.body_start, self.tail_start)
        )
        return Crop(*_int32(head, self.head, body, self.body, tail, self.tail))


class Part(NamedTuple):
    """Which bytes of each clip's WAV are read. All (N,)."""

    begin: Int64s
    """A multiple of what DALI reads in."""
    size: Int64s
    origin: Int64s
    """Where sample 0 of the clip lies in what is read, in samples; negative where it is not read."""


Order = list[tuple[Path, list[Line]]]
"""Shards, each with the clips to read from it, in reading order; a shard may come more than once."""
Rows = list[tuple[int, Int64s]]
"""The same as numbers: of a shard, and of the clips within it."""


class Reading(NamedTuple):
    """What is read, one clip after the other."""

    order: Order
    """Of each shard its lines."""
    clip_ids: NDArray[np.int64]
    """(N,)"""
    counters: NDArray[np.int64]
    """(N,) as in Batch."""

    def after(self, clips: int) -> Reading:
        """What is left to read after that many clips."""
        order, left = Order(), clips
        for path, lines in self.order:
            if left < len(lines):
                order.append((path, lines[left:]))
            left = max(0, left - len(lines))
        return Reading(order, self.clip_ids[clips:], self.counters[clips:])


SEGMENTS = 4096
"""Most index files of an epoch of draws. Ours: DALI opens one in 0.2 ms, so they take about a second."""


def index_lines(tar: Path, cut_short: bool = False) -> list[Line]:
    """The clips of a shard with their lines of the index; the `.index` member's name carries the clip id.

    Raises UserError as check_index.
    """
    index = tar.with_suffix(".idx")
    check_index(tar, index, cut_short)
    lines = index.read_text(encoding="ascii").splitlines()[1:]
    return [Line(int(_last_name(line)), line) for line in lines]


def key_width(order: Order) -> int:
    """Digits of a key, and so of the `.index` members."""
    return len(_last_name(order[0][1][0].text))


def write_indexes(folder: Path, order: Order, part: Part | None = None) -> list[str]:
    """Writes an index file for each shard that lists just the clips to read, in order, and of each the part to read.

    Returns their paths. Raises UserError for a part that its WAV does not have.
    """
    paths, position = [], 0
    for number, (tar, lines) in enumerate(order):
        path, texts = folder / f"{number:06d}.idx", [line.text for line in lines]
        if part is not None:
            here = slice(position, position + len(lines))
            bounds = zip(texts, part.begin[here].tolist(), part.size[here].tolist(), strict=True)
            try:
                texts = [_part_line(*bound) for bound in bounds]
            except ValueError as error:
                raise UserError(f"{tar}: {error}; unfused-fast check says more") from error
        path.write_text("\n".join([f"v1.2 {len(lines)}", *texts]) + "\n", encoding="ascii")
        paths.append(str(path))
        position += len(lines)
    return paths


def _part_line(text: str, begin: int, size: int) -> str:
    """A line of an index whose last member, the audio, begins later and is shorter."""
    others, offset, whole, name = text.rsplit(" ", 3)
    if begin + size > int(whole):
        raise ValueError(f"{name} has {whole} bytes, but the clips table says at least {begin + size}")
    return f"{others} {int(offset) + begin} {size} {name}"


def epoch_order(counts: list[int], generator: np.random.Generator | None) -> Rows:
    """An epoch's order: shards and the clips of each permuted, or as packed without a generator.

    `counts` are the clips of each shard.
    """
    numbers = range(len(counts)) if generator is None else generator.permutation(len(counts)).tolist()
    return [
        (number, np.arange(counts[number]) if generator is None else generator.permutation(counts[number]))
        for number in numbers
    ]


def taken(rows: Rows, positions: Int64s) -> Rows:
    """What of an order lies at these positions, which ascend."""
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

    Of K' non-empty clusters each gets N // K' draws, and N % K' of them, by chance, one more; within a cluster every
    row comes before any comes again. Source: DECAR section 3 (uniform over pseudo-labels). Ours: equal counts and no
    needless repeats, where independent draws would leave out a third of the clips even of equal clusters.
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

    Neighbouring draws are read shard by shard: as many as keep to SEGMENTS index files, and a batch at least, so that a
    batch is a fair sample of the draws even of a set of few shards.
    """
    ends = np.cumsum(counts)
    together = max(batch_size, -(-len(rows) * len(counts) // SEGMENTS))
    shard = np.searchsorted(ends, rows, side="right")
    positions = np.arange(len(rows))
    positions = positions[np.lexsort((positions, shard, positions // together))]
    breaks = np.flatnonzero(np.diff(shard[positions])) + 1
    order = []
    for part in np.split(positions, breaks):
        number = int(shard[part[0]])
        order.append((number, rows[part] - (ends[number] - counts[number])))
    return order, positions


def rows_of_epoch(
    counts: list[int], share: Share, seed: int, epoch: int | None, clusters: Int64s | None, batch_size: int
) -> tuple[Rows, Int64s]:
    """What a rank reads in an epoch, as in Loader.order, and (n,) how often each draw's clip was drawn before in it.

    `counts` are the clips of each shard, `batch_size` those of a batch on all ranks. Epoch None: as packed.
    """
    mine = share.positions(sum(counts), batch_size)
    generator = None if epoch is None else np.random.Generator(np.random.PCG64([seed, epoch]))
    if generator is None or clusters is None:
        return taken(epoch_order(counts, generator), mine), np.zeros(len(mine), np.int64)
    drawn, times = uniform_draws(clusters, generator)
    rows, positions = drawn_order(counts, drawn, batch_size)
    return taken(rows, mine), times[positions[mine]]


def crop_samples(config: Config) -> int:
    """Samples between the centres of a crop's first and last frame: what a clip must have, or is padded to."""
    return (config.crop_frames - 1) * config.frontend.hop_samples


def random_crops(config: Config, clip_ids: Tensor, samples: NDArray[np.int64], epoch: int, view: int) -> Crop:
    """(B,) ids and lengths in samples -> crops that begin on a frame, uniform over all places where they fit."""
    hop, reach, width = config.frontend.hop_samples, config.frontend.n_fft // 2, crop_samples(config)
    length = np.maximum(samples, width)
    start = hop * first_frames(config, clip_ids, torch.from_numpy(samples), epoch, view).numpy()
    stop = start + width + reach
    tail, body_start = np.maximum(0, stop - length), np.maximum(0, start - reach)
    head = np.maximum(0, reach - start)
    body = np.minimum(length, stop) - body_start
    return _with_edges(config, head, body_start, body, length, tail)


def whole_crops(config: Config, samples: NDArray[np.int64]) -> Crop:
    """(B,) lengths in samples -> all of each clip, with both edges."""
    reach = config.frontend.n_fft // 2
    length = np.maximum(samples, crop_samples(config))
    head = np.full_like(length, reach)
    return _with_edges(config, head, np.zeros_like(length), length, length, head)


def _with_edges(config: Config, head: Int64s, body_start: Int64s, body: Int64s, length: Int64s, tail: Int64s) -> Crop:
    """Crops whose edges are, by `frontend.pad_mode`, the clips reflected, or zeros. All (B,), in samples."""
    if config.frontend.pad_mode == "constant":
        head_start = tail_start = np.full_like(length, BEYOND)
    else:
        head_start, tail_start = np.ones_like(head), length - 1 - tail
    return Crop(*_int32(head_start, head, body_start, body, tail_start, tail))


def wav_part(crops: list[Crop], samples: Int64s, silent: NDArray[np.bool_]) -> Part:
    """What is to be read of each WAV so that its crops are whole; samples (N,): lengths of the clips. Of `silent` ones
    (N,) the header is.

    Reflected edges lie within the body of their crop. Ours: of a clip of 10 s a crop takes a tenth.
    """
    first = np.min([crop.body_start for crop in crops], axis=0).astype(np.int64)
    last = np.max([crop.body_start + crop.body for crop in crops], axis=0).astype(np.int64)
    begin = np.where(silent, 0, (WAV_HEADER_BYTES + 2 * first) // BLOCKSIZE * BLOCKSIZE)
    end = WAV_HEADER_BYTES + 2 * np.where(silent, 0, np.minimum(last, samples))
    return Part(begin, end - begin, (WAV_HEADER_BYTES - begin) // 2)


def random_masks(config: Config, clip_ids: Tensor, epoch: int, view: int) -> list[NDArray[np.float32]]:
    """Anchors and shapes (B, 2 M) of masks_of."""
    return [part.numpy() for part in masks_of(config, clip_ids, epoch, view)]


def first_frames(config: Config, counters: Tensor, samples: Tensor, epoch: int, view: int) -> Tensor:
    """(B,) counters and lengths in samples -> (B,) int64 first frame of a crop, uniform over all places where it fits;
    on their device, the same on every one.
    """
    if config.data.crop != "random":
        return torch.zeros_like(samples)
    draw = uniform(counters, 1, seed=config.train.seed, epoch=epoch, stream=Stream.CROP, view=view)[:, 0]
    length = samples.clamp(min=crop_samples(config))
    places = 1 + torch.div(length, config.frontend.hop_samples, rounding_mode="floor") - config.crop_frames + 1
    return (draw.double() * places).long()


def masks_of(config: Config, counters: Tensor, epoch: int, view: int) -> tuple[Tensor, Tensor]:
    """(B,) counters -> anchors and shapes (B, 2 M) float32 of SpecAugment masks: a width from 0 to the largest,
    anywhere it fits; on their device, the same on every one.

    A mask has two entries of each: along frequency, and along time.
    """
    settings, bins, frames = config.aug.specaug, config.frontend.n_mels, config.crop_frames
    kinds = [(0, bins, settings.freq_width)] * settings.freq_masks + [(1, frames, settings.time_width)] * (
        settings.time_masks
    )
    draws = uniform(counters, 2 * len(kinds), seed=config.train.seed, epoch=epoch, stream=Stream.SPECAUGMENT, view=view)
    anchors = torch.zeros(len(counters), len(kinds), 2, device=counters.device)
    shapes = torch.empty_like(anchors)
    for mask, (axis, size, widest) in enumerate(kinds):
        width = torch.floor(draws[:, 2 * mask] * (min(widest, size) + 1))
        anchors[:, mask, axis] = torch.floor(draws[:, 2 * mask + 1] * (size - width + 1))
        shapes[:, mask, axis] = width
        shapes[:, mask, 1 - axis] = (bins, frames)[1 - axis]
    return anchors.flatten(1), shapes.flatten(1)


def _int32(*arrays: NDArray[Any]) -> list[Int32s]:
    return [np.ascontiguousarray(array, dtype=np.int32) for array in arrays]


def _last_name(line: str) -> str:
    return line.rsplit(" ", 1)[1].split(".", 1)[0]
