"""Batches out of log-mels that are held ready: on the device, in pinned memory, or mapped from disk.

B clips in a batch, N clips of the split, n those of this rank in an epoch, F mel bins, T frames, V views.
What a clip's crop, warp and masks are is drawn as for the stream, for a whole epoch at once and ahead of it, where it
is used; a batch is then one gather, one transposing copy and one product, without a word between device and host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import Store
from unfused_fast.data.batches import Batch, empty_batch
from unfused_fast.data.order import first_frames
from unfused_fast.data.spec_augment import SpecAugment
from unfused_fast.data.stream import Loader

Starts = NDArray[np.int64]

BUFFERS = 2
"""Staging buffers in pinned memory: one is filled while the other is copied to the device."""


@dataclass(frozen=True)
class HeldLogMels:
    """The log-mels of a split, clip after clip."""

    frames: Tensor
    """(frames of all clips, F) float16: on the device, or in the host's memory (pinned, mapped) to be copied from."""
    starts: Starts
    """(N,) first frame of each clip."""
    counts: Starts
    """(N,) frames of each clip."""
    mean: float
    """What was subtracted from the log-mels, and"""
    std: float
    """what they were then divided by."""


class ResidentLoader:
    """Batches of one split on one rank, out of memory: ids, crops and masks as of the Loader it is made for.

    Values differ from the stream's by the rounding to float16: at most 2 ** -11 of each, before another normalisation.
    """

    def __init__(self, stream: Loader, held: HeldLogMels, store: Store, start_seconds: float) -> None:
        """`store` is where `held` lies, and `start_seconds` what it took to get it there."""
        self.stream, self.held, self.store, self.start_seconds = stream, held, store, start_seconds
        self.device, self.clips, self.batch_size = stream.device, stream.clips, stream.batch_size
        self.full_batches, self.share, self.skipped = stream.full_batches, stream.share, stream.skipped
        self._first = stream.shards.first_id(stream.split)
        self._scale = held.std / stream.std
        self._shift = (held.mean - stream.mean) / stream.std
        self._direct = store != "pinned" and held.frames.device.type == stream.device.type

    def epoch(
        self,
        epoch: int,
        views: int = 2,
        *,
        masks: bool = True,
        clusters: NDArray[np.int64] | None = None,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """As Loader.epoch."""
        config, stream = self.stream.config, self.stream
        whole = self.share.batches(self.clips, self.batch_size)[first_batch:]
        first = whole[0].start if whole else self.clips
        _, *drawn_ids = stream.rows(epoch, clusters)
        ids, counters = (array[first:] for array in drawn_ids)
        on_device, counted = self._put(ids), self._put(counters)
        there, rows, lengths = (
            torch.from_numpy(array).to(self.held.frames.device)
            for array in (counters, self.held.starts[ids - self._first], stream.samples[ids])
        )
        starts = [
            rows + first_frames(config, there, lengths, epoch, view)
            for view in range(1 if config.views.same_crop else views)
        ]
        augmented = masks and config.aug.specaug.active
        spec_augment = SpecAugment(config, counted, epoch, views) if augmented else None
        parts = [slice(part.start - first, part.stop - first) for part in whole if part.start < part.stop]
        for part, crops in zip(parts, self._crops(starts, parts), strict=True):
            made = [self._normalised(crop) for crop in crops]
            if spec_augment is not None:
                made = [spec_augment(made[view % len(made)], part, view) for view in range(views)]
            given = tuple(made[view % len(made)].unsqueeze(1) for view in range(views))
            yield Batch(on_device[part], given, None, counted[part])
        if len(parts) < len(whole):
            yield empty_batch(config, views, self.device)

    def whole_clips(self) -> Iterator[Batch]:
        """As Loader.whole_clips."""
        _, ids, _ = self.stream.rows(None)
        starts, counts = self.held.starts[ids - self._first], self.held.counts[ids - self._first]
        size = self.stream.own_batch_size
        for part in (slice(begin, begin + size) for begin in range(0, len(ids), size)):
            frames = np.arange(counts[part].max())
            index = starts[part, None] + np.minimum(frames, counts[part, None] - 1)
            rows = torch.from_numpy(index).to(self.held.frames.device)
            values = self.held.frames[rows].to(self.device)
            there = self._put(counts[part])
            valid = torch.arange(len(frames), device=self.device) < there[:, None]
            log_mel = self._normalised(values) * valid[:, None, :]
            clip_ids = self._put(ids[part])
            yield Batch(clip_ids, (log_mel.unsqueeze(1),), there, clip_ids)

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _normalised(self, crops: Tensor) -> Tensor:
        """(B, T, F) float16 -> (B, F, T) float32, contiguous, by the statistics of the stream."""
        log_mel = torch.empty(len(crops), crops.shape[2], crops.shape[1], device=crops.device)
        log_mel.copy_(crops.transpose(1, 2))
        if (self._scale, self._shift) != (1.0, 0.0):
            log_mel.mul_(self._scale).add_(self._shift)
        return log_mel

    def _crops(self, starts: list[Tensor], parts: list[slice]) -> Iterator[list[Tensor]]:
        """First frames (n,) of each crop of an epoch -> (B, T, F) float16 of each, on the device, batch by batch."""
        windows = sliding_windows(self.held.frames, self.stream.config.crop_frames)
        if self._direct:
            for part in parts:
                yield [windows.index_select(0, start[part]) for start in starts]
        else:
            yield from _copied_ahead(windows, starts, parts, self.device)


def sliding_windows(frames: Tensor, length: int) -> Tensor:
    """(frames, F) -> a view (frames - length + 1, length, F): entry i is the `length` frames from i on.

    Ours: index_select on it copies a crop as one block, six times as fast on a CPU as frame by frame.
    """
    count, bins = frames.shape
    return frames.as_strided((count - length + 1, length, bins), (bins, bins, 1))


def _copied_ahead(
    windows: Tensor, starts: list[Tensor], parts: list[slice], device: torch.device
) -> Iterator[list[Tensor]]:
    """Crops gathered in the host's memory and copied on a stream of their own, a batch ahead of the one in use.

    On a CPU, whose streams do nothing, the same copies are made in turn.
    """
    on_gpu, module = device.type == "cuda", torch.get_device_module(device)
    longest = max((part.stop - part.start for part in parts), default=0)
    shape = (BUFFERS, len(starts), longest, *windows.shape[1:])
    staging = torch.empty(shape, dtype=windows.dtype, pin_memory=on_gpu)
    copies = module.Stream(device) if on_gpu else module.Stream()
    copied = [module.Event() for _ in range(BUFFERS)]

    def begin(number: int) -> list[Tensor]:
        slot = number % BUFFERS
        copied[slot].synchronize()  # what was in this buffer has left it; the wait is over before it is asked for
        count = len(starts[0][parts[number]])
        for crop, start in enumerate(starts):
            torch.index_select(windows, 0, start[parts[number]], out=staging[slot, crop, :count])
        with module.stream(copies):
            made = [staging[slot, crop, :count].to(device, non_blocking=True, copy=True) for crop in range(len(starts))]
            copied[slot].record(copies)
        return made

    ahead = begin(0) if parts else None
    for number in range(len(parts)):
        assert ahead is not None
        made, event = ahead, copied[number % BUFFERS]
        stream = module.current_stream(device)
        stream.wait_event(event)
        ahead = begin(number + 1) if number + 1 < len(parts) else None
        for crop in made if on_gpu else ():
            crop.record_stream(stream)
        yield made
