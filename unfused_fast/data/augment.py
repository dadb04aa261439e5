"""Views of a batch: log-mixup-exp and random resize crop, batched, with counter-based random numbers, on the device:
on a GPU in a kernel each (kernels/views.py).

B clips in a batch, F mel bins, T frames, M clips in the mixup memory. SpecAugment comes before (spec_augment.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfused_fast.config import Config, RandomResizeCropConfig
from unfused_fast.data.normalisation import RunningNorm
from unfused_fast.data.randomness import Stream, uniform
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.kernels.views import augmented_reference, augmented_triton
from unfused_fast.optional import triton_runs
from unfused_fast.strict_state import expected, misfit

CPU_BLOCK = 128
"""Clips augmented at once on a CPU. Ours: what is made on the way to a view then stays in its cache, and is no new
memory to be mapped each time; a GPU takes the batch whole."""


def resize_crops(bins: int, frames: int, draws: Tensor, config: RandomResizeCropConfig) -> tuple[Tensor, Tensor]:
    """Draws (B, 4) in [0, 1) -> offset and length (B, 2) of a random crop, in mel bins and in frames.

    The input lies in the middle of a canvas of F x canvas_time * T; draws choose height, length and where the crop
    lies. Source: BYOL-A section 3; authors.
    """

    def crop(size: int, canvas: int, scale: tuple[float, float], scale_draw: Tensor, place_draw: Tensor) -> Tensor:
        length = (size * (scale[0] + (scale[1] - scale[0]) * scale_draw)).floor().clamp(1, canvas)
        offset = (place_draw * (canvas - length + 1)).floor().minimum(canvas - length)
        return torch.stack([offset - (canvas - size) // 2, length], dim=1)

    scale_f, place_f, scale_t, place_t = draws.unbind(1)
    return (
        crop(bins, bins, config.freq_scale, scale_f, place_f),
        crop(frames, int(frames * config.canvas_time), config.time_scale, scale_t, place_t),
    )


class MixupMemory:
    """The last M normalised crops on the device; each clip is mixed with one of them, never with itself.

    Which clip stands where depends on the order of batches, so the memory is part of a checkpoint. Ours: float16, which
    holds
    a normalised log-mel to 1e-3 of its spread at half the bytes.
    """

    def __init__(self, size: int, bins: int, frames: int, device: torch.device) -> None:
        self.crops = torch.zeros(size, 1, bins, frames, dtype=torch.float16, device=device)
        self.clip_ids = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.written = 0

    def draw(self, clip_ids: Tensor, draws: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """(B,) ids, draws (B, 2) -> which past crop each is mixed with, and its share, 0 where there is none; (B,)."""
        filled = min(self.written, len(self.crops))
        slot = (draws[:, 0] * max(filled, 1)).long().clamp(max=max(filled, 1) - 1)
        usable = (self.clip_ids[slot] != clip_ids) & (filled > 0)
        return slot, torch.where(usable, draws[:, 1] * ratio, 0.0)

    def push(self, clip_ids: Tensor, crops: Tensor) -> None:
        """Remembers a batch, overwriting the oldest."""
        clip_ids, crops = clip_ids[-len(self.crops) :], crops[-len(self.crops) :]
        slots = (torch.arange(len(clip_ids), device=clip_ids.device) + self.written) % len(self.crops)
        self.crops[slots] = crops.to(self.crops.dtype)
        self.clip_ids[slots] = clip_ids
        self.written += len(clip_ids)


class Augmenter:
    """Turns normalised crops into views. One per run; its state is the mixup memory, and what a running norm saw."""

    def __init__(self, config: Config, clips: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        """The memory is that of all `ranks`: the same on each."""
        self.config, self.seed, self._ranks = config.aug, config.train.seed, ranks
        memory = MixupMemory(min(config.aug.mixup.memory, clips), config.frontend.n_mels, config.crop_frames, device)
        self.memory = memory if config.aug.mixup.ratio > 0 else None
        self.norm = RunningNorm(device, ranks) if config.data.norm == "running" else None
        self.augmented = augmented_triton if device.type == "cuda" and triton_runs() else augmented_reference

    def __call__(
        self, clip_ids: Tensor, crops: tuple[Tensor, ...], epoch: int, counters: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(B,) ids and V crops (B, 1, F, T) -> V views: a running norm, mixup with the memory, random resize crop.

        `counters` (B,) take the place of the ids in random numbers where a clip may come twice in an epoch.
        """
        counters = clip_ids if counters is None else counters
        crops = crops if self.norm is None else self.norm(crops)
        block = CPU_BLOCK if clip_ids.device.type == "cpu" else max(1, len(clip_ids))
        views = []
        for view, crop in enumerate(crops):
            starts = range(0, max(1, len(clip_ids)), block)
            made = [
                self._view(clip_ids[part], counters[part], crop[part], epoch, view)
                for part in (slice(start, start + block) for start in starts)
            ]
            views.append(made[0] if len(made) == 1 else torch.cat(made))
        if self.memory is not None:
            if self._ranks.together:
                clip_ids = self._ranks.gather_rows(clip_ids)
                crops = (self._ranks.gather_rows(crops[0].to(self.memory.crops.dtype)),)
            self.memory.push(clip_ids, crops[0])
        return tuple(views)

    def plain(self, crops: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Crops (B, 1, F, T) as they are, by what a running norm has seen so far."""
        return crops if self.norm is None else self.norm(crops, learn=False)

    def _view(self, clip_ids: Tensor, counters: Tensor, crop: Tensor, epoch: int, view: int) -> Tensor:
        slots = shares = frequency = time = None
        if self.memory is not None:
            draws = uniform(counters, 2, seed=self.seed, epoch=epoch, stream=Stream.MIXUP, view=view)
            slots, shares = self.memory.draw(clip_ids, draws, self.config.mixup.ratio)
        if self.config.rrc.enabled:
            draws = uniform(counters, 4, seed=self.seed, epoch=epoch, stream=Stream.RESIZE_CROP, view=view)
            frequency, time = resize_crops(crop.shape[2], crop.shape[3], draws, self.config.rrc)
        memory = None if self.memory is None else self.memory.crops
        return self.augmented(crop, memory, slots, shares, frequency, time)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save: the filled part of the memory, and of a running norm what it saw."""
        normed = {} if self.norm is None else self.norm.state()
        if self.memory is None:
            return normed
        filled = min(self.memory.written, len(self.memory.crops))
        return normed | {
            "mixup.crops": self.memory.crops[:filled],
            "mixup.clip_ids": self.memory.clip_ids[:filled],
            "mixup.written": torch.tensor(self.memory.written),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of state. Raises UserError: not the state of a memory of this size."""
        if self.norm is not None:
            self.norm.load_state(state)
        if self.memory is None:
            return
        ids = expected(state, "mixup.clip_ids", torch.int64, (None,))
        filled, written = len(ids), int(expected(state, "mixup.written", torch.int64, ()))
        if filled != min(max(written, 0), len(self.memory.crops)):
            raise misfit(f"mixup.clip_ids are {filled} of {written} in a memory of {len(self.memory.crops)}")
        crops = expected(state, "mixup.crops", torch.float16, (filled, *self.memory.crops.shape[1:]))
        self.memory.crops[:filled] = crops.to(self.memory.crops.device)
        self.memory.clip_ids[:filled] = ids.to(self.memory.clip_ids.device)
        self.memory.written = written
