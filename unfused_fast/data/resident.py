"""Batches from log-mels in memory: on the device, in the host's, or mapped from disk.

B clips in a batch on this rank, F mel bins, T frames. The crops of an epoch are drawn together before it, on
the device that uses them; a batch is then one gather, one transposing copy and one product, without a host sync.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unfused_fast.config import Store
from unfused_fast.data.crops import first_frames
from unfused_fast.data.log_mel_cache import Layout
from unfused_fast.data.order import Int64s, Reading
from unfused_fast.data.stream import Batch, Batches, sent

BUFFERS = 2
"""Staging buffers in pinned memory: one is filled while the other is copied to the device. Ours: the log-mels
themselves are not pinned, since the host gathers a batch from them; torch would round them up to a power of two."""


class ResidentLoader(Batches):
    """Batches of one split on one rank, from memory: the same ids, crops and masks as the Loader that it replaces.

    Values differ from the stream's by the rounding to float16: at most 2 ** -11 of each, before another normalisation.
    """

    def __init__(self, stream: Batches, layout: Layout, frames: Tensor, store: Store, start_seconds: float) -> None:
        """`frames` (frames of this rank's clips, F) float16 are those of the layout, on the device or in the host's
        memory (in place or mapped) to be copied from; `store` says where, and `start_seconds` what it took to get them
        there.
        """
        vars(self).update(vars(stream))  # the same split, order and share
        self.layout, self.frames, self.store, self.start_seconds = layout, frames, store, start_seconds
        mean, std = layout.identity["mean"], layout.identity["std"]
        self._scale, self._shift = std / self.std, (mean - self.mean) / self.std

    def _spans(self, reading: Reading) -> tuple[Int64s, Int64s]:
        """First of this rank's frames, and number of frames, of each clip that is read."""
        rows = reading.clip_ids - self.shards.first_id(self.split)
        return self.layout.starts[rows] - self.layout.own.start, self.layout.counts[rows]

    def _crops(self, reading: Reading, epoch: int, crops: int, parts: list[slice]) -> Iterator[list[Tensor]]:
        if not parts:
            return
        counters, begins, lengths = (
            sent(torch.from_numpy(array), self.frames.device)
            for array in (reading.counters, self._spans(reading)[0], self.samples[reading.clip_ids])
        )
        starts = [begins + first_frames(self.config, counters, lengths, epoch, crop) for crop in range(crops)]
        windows = sliding_windows(self.frames, self.config.crop_frames)
        if self.store != "pinned" and self.frames.device.type == self.device.type:
            for part in parts:
                yield [self._normalised(windows.index_select(0, start[part])) for start in starts]
        else:
            for values in _copied_ahead(windows, starts, parts, self.device):
                yield [self._normalised(crop) for crop in values]

    def whole_clips(self) -> Iterator[Batch]:
        reading = self.reading(None)
        ids, (starts, counts) = self._put(reading.clip_ids), self._spans(reading)
        for begin in range(0, len(ids), self.own_batch_size):
            part = slice(begin, begin + self.own_batch_size)
            frames = np.arange(counts[part].max())
            index = starts[part, None] + np.minimum(frames, counts[part, None] - 1)
            values = self.frames[sent(torch.from_numpy(index), self.frames.device)]
            values = values if values.device.type == self.device.type else sent(values, self.device)
            there = self._put(counts[part])
            valid = torch.arange(len(frames), device=self.device) < there[:, None]
            log_mel = self._normalised(values) * valid[:, None, :]
            yield Batch(ids[part], (log_mel.unsqueeze(1),), there, ids[part])

    def _normalised(self, crops: Tensor) -> Tensor:
        """(B, T, F) float16 -> (B, F, T) float32, contiguous, by the statistics of the stream."""
        log_mel = torch.empty(len(crops), crops.shape[2], crops.shape[1], device=crops.device)
        log_mel.copy_(crops.transpose(1, 2))
        if (self._scale, self._shift) != (1.0, 0.0):
            log_mel.mul_(self._scale).add_(self._shift)
        return log_mel


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
        copied[slot].synchronize()  # the copy from this buffer two batches ago, which is normally complete by now
        count = len(starts[0][parts[number]])
        for crop, start in enumerate(starts):
            torch.index_select(windows, 0, start[parts[number]], out=staging[slot, crop, :count])
        with module.stream(copies):
            made = [staging[slot, crop, :count].to(device, non_blocking=True, copy=True) for crop in range(len(starts))]
            copied[slot].record(copies)
        return made

    ahead = begin(0) if parts else []
    for number in range(len(parts)):
        made, event = ahead, copied[number % BUFFERS]
        stream = module.current_stream(device)
        stream.wait_event(event)
        ahead = begin(number + 1) if number + 1 < len(parts) else []
        for crop in made if on_gpu else ():
            crop.record_stream(stream)
        yield made
