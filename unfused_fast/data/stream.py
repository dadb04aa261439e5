"""Batches of a split, decoded and computed again each epoch.

B clips in a batch on this rank, N clips of the split, F mel bins, T frames, V views. DALI reads, decodes and
crops (dali.py), by index files that order.py writes for each epoch, so that of a WAV only the crop's part is read. On a
GPU it also computes the log-mels; on a CPU torch does, in half the time. Without DALI there are no crops, and
libsndfile decodes whole clips (waveforms.py).
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data.augment import spec_augmented
from unfused_fast.data.crops import Pieces, crop_samples, first_frames, pieces, wav_parts
from unfused_fast.data.dali import check_ids, clip_pipeline, dali_log_mel, import_dali, in_torch
from unfused_fast.data.front_end import framed_log_mel, scale, set_statistics
from unfused_fast.data.order import (
    EpochOrder,
    Int64s,
    Order,
    Reading,
    index_folder,
    read_split_index,
    recut,
    write_indexes,
)
from unfused_fast.data.randomness import Draws, draws_of
from unfused_fast.data.unreadable import reading_error
from unfused_fast.data.waveforms import decoded
from unfused_fast.distributed import WHOLE, Share
from unfused_fast.errors import UserError
from unfused_fast.launch import temporary_prefix
from unfused_fast.optional import present
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.table import ShardSet


class Batch(NamedTuple):
    """The input of one step; every tensor is on the device."""

    clip_ids: Tensor
    """(B,) int64: rows of the clips table, and of the memory bank."""
    views: tuple[Tensor, ...]
    """V normalised log-mels (B, 1, F, T)."""
    frame_counts: Tensor | None
    """(B,) int64 valid frames of whole clips; None for training crops, which all have T."""
    counters: Tensor
    """(B,) int64 counter of the random numbers of views: the clip id, raised by the number of clips of the set for
    each time that the clip was drawn before in the epoch.
    """
    sizes: tuple[int, ...] = ()
    """Clips of the batch on each rank, of training crops."""
    draws: Draws | None = None
    """What its augmented views draw."""


class Batches(ABC):
    """One split of a shard set in batches, of which a rank has the clips that it holds, and their order. Subclasses
    read the log-mels: from the shards (Loader), or from memory (resident.py).
    """

    start_seconds = 0.0
    """Time before the first batch: reading or computing the log-mels that are held in memory."""

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        config: Config,
        *,
        device: torch.device,
        batch_size: int,
        share: Share = WHOLE,
        statistics: Mapping[str, float] | None = None,
        threads: int | None = None,
        only: NDArray[np.int64] | None = None,
        left_out: Sequence[int] = (),
    ) -> None:
        """Reads the split's index files; `statistics` (mean, std of the log-mel) replace those of the set.

        Args:
            batch_size: clips of a batch on all ranks.
            share: this rank's part of the split.
            threads: that decode; one a core, up to 16, unless given.
            only: ids of the clips of the split that are read; None: all.
            left_out: ids of clips that cannot be read (unreadable.py).

        Raises:
            UserError: a split is missing, or a shard or index does not match it.
        """
        self.in_dali = present("nvidia.dali")
        """Whether DALI decodes; otherwise libsndfile does."""
        if self.in_dali:
            import_dali()  # reports one that does not load before anything is written
        self.shards, self.split, self.config, self.device = shards, split, config, device
        self.batch_size, self.share, self.left_out = batch_size, share, sorted(left_out)
        self.log_mel: Literal["dali", "torch"] = "dali" if device.type == "cuda" and self.in_dali else "torch"
        """What computes the log-mels; torch does on the CPU. Ours: there it takes half the time."""
        self.threads = threads or min(available_cores(), 16)
        self.samples = shards.clips.column("samples").to_numpy()
        clips, first = len(shards.clips_in(split)), shards.first_id(split)
        chosen = np.full(len(self.samples), only is None)
        chosen[[] if only is None else only] = True
        chosen[self.left_out] = False
        self.clip_ids = first + np.flatnonzero(chosen[first : first + clips])
        """(clips,) of the split that are read on all ranks, ascending."""
        self.index = read_split_index(shards, split, share.of(clips), cut_short=bool(left_out))
        self.index = self.index.only(chosen[self.index.clip_ids])
        self.clips = len(self.clip_ids)
        self.full_batches = self.clips // batch_size
        """Batches of exactly batch_size clips in an epoch."""
        self.own_batch_size = -(-batch_size // share.world_size)
        """Clips of a batch on this rank, up to a few."""
        if batch_size < share.world_size:
            raise UserError(
                f"a batch of {batch_size} clips is fewer than the {share.world_size} processes that share it; use a "
                "larger --set train.batch_size, or fewer --devices"
            )
        self.mean, self.std = scale(config, statistics or set_statistics(shards, config.frontend))

    @cached_property
    def order(self) -> Order:
        """Of the epochs of crops. Raises UserError unless the number of ranks divides data.partitions."""
        first, clips = self.shards.first_id(self.split), len(self.shards.clips_in(self.split))
        return Order(clips, self.clip_ids - first, self.share, self.config.data.partitions, self.batch_size)

    def reading(self, epoch: int | None, clusters: NDArray[np.int64] | None = None) -> Reading:
        """What this rank reads in an epoch. Epoch None: for whole clips, as whole_clips.

        Args:
            clusters: as of `epoch`.
        """
        index, seed = self.index, self.config.train.seed
        if epoch is None:
            rows = self._from_short_to_long()
            found = EpochOrder(rows, np.zeros_like(rows), np.zeros((0, self.share.world_size), np.int64))
        elif clusters is None:
            found = self.order.every_clip(index.shard, seed, epoch)
        else:
            read = clusters[self.clip_ids - self.shards.first_id(self.split)]
            found = self.order.draws(read, len(index.tars), seed, epoch)
        ids = index.clip_ids[found.entries]
        return Reading(found.entries, ids, ids + found.times * len(self.samples), found.sizes)

    def epoch(
        self,
        epoch: int,
        views: int = 2,
        *,
        masks: bool = True,
        clusters: NDArray[np.int64] | None = None,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """Every clip of this rank once, as crops, in the order of (seed, epoch); the last batch holds the rest. All
        ranks have the same number of batches, of which one may hold no clip on a rank.

        With `clusters` (N,), the cluster of each clip of the split: as many draws, equally many from each non-empty
        cluster. With `masks` SpecAugment masks each view separately, and what else its augmentation draws comes with
        the batch. Crops are frames of the clip's log-mel: the same
        whether the log-mel is computed from the crop (Loader) or from the whole clip. A clip shorter than the crop is
        padded with silence. Batches before `first_batch` are skipped without being read.
        """
        config, reading = self.config, self.reading(epoch, clusters)
        ends = np.cumsum(np.r_[0, reading.sizes[:, self.share.rank]])[first_batch:]
        rows, clip_ids, numbers = (part[ends[0] :] for part in reading[:3])
        reading = Reading(rows, clip_ids, numbers, reading.sizes[first_batch:])
        ids, counters = self._put(reading.clip_ids), self._put(reading.counters)
        draws = draws_of(config, counters, epoch, views) if masks else None
        crops = 1 if config.views.same_crop else views
        parts = [slice(*bounds) for bounds in pairwise((ends - ends[0]).tolist())]
        nothing = torch.zeros(0, config.frontend.n_mels, config.crop_frames, device=self.device)
        read = self._crops(reading, epoch, crops, [part for part in parts if part.start < part.stop])
        for part, sizes in zip(parts, reading.sizes.tolist(), strict=True):
            log_mels = next(read) if part.start < part.stop else [nothing] * crops
            drawn = None if draws is None else draws.of(part)
            if drawn is not None:
                log_mels = spec_augmented(log_mels, drawn, views)
            made = tuple(log_mels[view % len(log_mels)].unsqueeze(1) for view in range(views))
            yield Batch(ids[part], made, None, counters[part], tuple(sizes), drawn)
        assert next(read, None) is None

    @abstractmethod
    def _crops(self, reading: Reading, epoch: int, crops: int, parts: list[slice]) -> Iterator[list[Tensor]]:
        """Log-mels (B, F, T) of each of some random crops, batch by batch; `parts` are the rows of each."""

    @abstractmethod
    def whole_clips(self) -> Iterator[Batch]:
        """Every clip of this rank once, whole, each shard from short to long; T is the longest of its batch. Where the
        share is of blocks, whose size is a multiple of that of a batch, each block from short to long: then batches are
        the same on any number of ranks. A block from which clips are left out gives its last clip several times.
        """

    def _from_short_to_long(self) -> Int64s:
        """(n,) rows of the index, as whole_clips gives them."""
        ids, block, first = self.index.clip_ids, self.share.block, self.shards.first_id(self.split)
        blocks = (ids - first) // block if block > 1 else np.zeros_like(ids)
        rows = np.lexsort((self.samples[ids], self.index.shard, blocks))
        if block == 1:
            return rows
        assert not block % self.own_batch_size
        numbers, counts = np.unique(blocks, return_counts=True)
        last = (len(self.shards.clips_in(self.split)) - 1) // block  # which alone ends with a smaller batch
        times = np.ones_like(rows)
        times[np.cumsum(counts) - 1] += np.where(numbers < last, -counts % self.own_batch_size, 0)
        return np.repeat(rows, times)

    def _put(self, array: NDArray[Any]) -> Tensor:
        return sent(torch.from_numpy(array), self.device)


class Loader(Batches):
    """Batches of one split on one rank, from the shards."""

    def _crops(self, reading: Reading, epoch: int, crops: int, parts: list[slice]) -> Iterator[list[Tensor]]:
        counters, lengths = torch.from_numpy(reading.counters), self.samples[reading.clip_ids]
        frames = (
            first_frames(self.config, counters, torch.from_numpy(lengths), epoch, crop).numpy() for crop in range(crops)
        )
        taken = [pieces(self.config, lengths, frame) for frame in frames]
        for made in recut((made for made, _ in self._run(reading, taken)), parts):
            if self.log_mel == "torch":
                made = [framed_log_mel(waveform, self.config.frontend, self.mean, self.std) for waveform in made]
            yield made

    def whole_clips(self) -> Iterator[Batch]:
        reading, config = self.reading(None), self.config.frontend
        lengths = self.samples[reading.clip_ids]
        frames = torch.from_numpy(1 + np.maximum(lengths, crop_samples(self.config)) // config.hop_samples)
        ids = self._put(reading.clip_ids)
        for made, rows in self._whole(reading, pieces(self.config, lengths)):
            counts = frames[rows]
            longest = int(counts.max())  # padded, too, for the clips that fill the graph's last batch
            if self.log_mel == "dali":
                values = made[..., :longest]
            else:
                waveforms = made[:, : (longest - 1) * config.hop_samples + config.n_fft]
                values = framed_log_mel(waveforms, config, self.mean, self.std)
                if int(counts.min()) < longest:
                    values *= (torch.arange(longest) < counts[:, None])[:, None]
            yield Batch(ids[rows], (values.to(self.device).unsqueeze(1),), sent(counts, self.device), ids[rows])

    def _whole(self, reading: Reading, clips: Pieces) -> Iterator[tuple[Tensor, slice]]:
        """Waveforms (B, L) or log-mels (B, F, T) of whole clips, batch by batch, and the rows of each batch."""
        if self.in_dali:
            return ((made, rows) for (made,), rows in self._run(reading, [clips], whole=True))
        console.once("data: libsndfile decodes the audio, because DALI is not installed")
        return decoded(
            self.index,
            reading,
            clips,
            self.samples[reading.clip_ids],
            split=self.split,
            codec=self.shards.manifest.codec,
            unit_norm=self.config.data.norm == "wave_l2",
            batch_size=self.own_batch_size,
            threads=self.threads,
        )

    def _run(self, reading: Reading, crops: list[Pieces], whole: bool = False) -> Iterator[tuple[list[Tensor], slice]]:
        """Log-mels or waveforms of each crop, batch by batch, and the rows of each batch.

        Args:
            whole: crops are whole clips; then WAVs are decoded, which detects damaged headers.
        """
        ids, size, codec = reading.clip_ids, self.own_batch_size, self.shards.manifest.codec
        if not len(ids):
            return
        unit_norm, parts = self.config.data.norm == "wave_l2", None
        if codec == "wav" and not whole and not unit_norm:
            begin, length, crops = wav_parts(crops, self.samples[ids])
            parts = begin, length

        in_dali = partial(dali_log_mel, config=self.config.frontend, mean=self.mean, std=self.std)
        where = index_folder(self.index, reading.rows)
        index_files = tempfile.TemporaryDirectory(prefix=temporary_prefix(os.getpid()), dir=where)
        on_gpu = self.device.type == "cuda"
        with index_files as folder:
            tars, indexes = write_indexes(Path(folder), self.index, reading.rows, parts)
            pipeline = clip_pipeline(
                tars,
                indexes,
                crops,
                log_mel=in_dali if self.log_mel == "dali" else None,
                whole=whole,
                codec=codec,
                decoded=parts is None,
                unit_norm=unit_norm,
                batch_size=size,
                threads=self.threads,
                device_id=(self.device.index or 0) if on_gpu else None,
            )
            for start in range(0, len(ids), size):
                rows = slice(start, min(start + size, len(ids)))
                try:
                    pipeline.build()  # only the first call has an effect
                    # with a stream, which then waits for DALI's, the host does not wait for a GPU
                    digits, *outputs = pipeline.run(torch.cuda.current_stream(self.device) if on_gpu else None)
                    index_files.cleanup()  # DALI has read them, and a kill would leave them in memory
                except RuntimeError as error:
                    del pipeline  # while it exists, DALI gives the next pipeline the old content of a repaired shard
                    ahead = self.index.shard[reading.rows[start : start + 2 * size]].tolist()
                    near = dict.fromkeys(str(self.index.tars[shard]) for shard in ahead)
                    raise reading_error(self.split, list(near), tars, error) from error.with_traceback(None)
                valid = rows.stop - rows.start
                check_ids(self.shards.directory, self.split, ids[rows], digits.as_array()[:valid])
                yield [in_torch(output, self.device)[:valid] for output in outputs], rows


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device. To a GPU it goes by pinned memory, which torch keeps until it is read, so
    that the host does not wait.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
