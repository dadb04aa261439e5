"""Views of a batch: SpecAugment, normalisation by running statistics, log-mixup-exp, random resize crop, fader, noise.

B clips in a batch, F mel bins, T frames, V views, M masks of a view, K clusters of clips for mixup. Random numbers are
functions of (seed, epoch, view, counter), so that views do not depend on how log-mels are stored. On a GPU, mixup and
resize crop are one kernel each (kernels/views.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unfused_fast.config import Config, RandomResizeCropConfig
from unfused_fast.data.mixup import MixupMemory, clusters_of, farthest_first
from unfused_fast.data.randomness import Stream, normal, uniform
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.kernels.views import augmented_reference, augmented_triton, log_mixup_exp
from unfused_fast.optional import triton_runs
from unfused_fast.strict_state import expected, misfit

CPU_BLOCK = 128
"""Clips augmented at once on a CPU. Ours: intermediate results then stay in the cache, and reuse memory that is already
mapped; a GPU takes the whole batch."""
LEAST_STD = 1e-6
"""Smallest standard deviation; smaller ones are replaced by it. Ours: crops of pure silence have none."""
WHOLE_VIEWS = 2
"""Views before the local ones. Source: SwAV."""
TENSOR = "norm.moments"
"""Name in a checkpoint."""
GIVEN = "norm.given"
"""Name in a checkpoint of the mean and standard deviation (2,) that a run inherited from its encoder's run."""


Spans = list[tuple[Tensor, Tensor]]
"""Along frequency and along time: first and one past the last of each mask, (B, M) float32 both."""


def masks_of(config: Config, counters: Tensor, epoch: int, view: int) -> Spans:
    """(B,) counters -> SpecAugment masks: a width from 0 to the largest, at any place where it fits; on the device of
    the counters, with the same values on every device.
    """
    settings = config.aug.specaug
    axes = (config.frontend.n_mels, settings.freq_width), (config.crop_frames, settings.time_width)
    masks = [settings.freq_masks, settings.time_masks]
    draws = uniform(counters, 2 * sum(masks), seed=config.train.seed, epoch=epoch, stream=Stream.SPECAUGMENT, view=view)
    spans = []
    for (size, widest), draw in zip(axes, torch.split(draws.reshape(-1, sum(masks), 2), masks, dim=1), strict=True):
        width = torch.floor(draw[..., 0] * (min(widest, size) + 1))
        begin = torch.floor(draw[..., 1] * (size - width + 1))
        spans.append((begin, begin + width))
    return spans


def mask(log_mel: Tensor, spans: Spans) -> Tensor:
    """(B, F, T) -> (B, F, T) with zeros in the rows and columns of the masks, by two products."""
    factors = []
    for size, (begin, end) in zip(log_mel.shape[1:], spans, strict=True):
        place = torch.arange(size, device=log_mel.device)
        inside = (place >= begin[..., None]) & (place < end[..., None])
        factors.append(inside.any(dim=1).logical_not().to(log_mel.dtype))
    masked: Tensor = log_mel * factors[0][:, :, None]
    return masked.mul_(factors[1][:, None, :])


def warps_of(config: Config, counters: Tensor, epoch: int, view: int) -> tuple[Tensor, Tensor]:
    """(B,) counters -> (B,) float32 frame that is moved, and where to; on the device of the counters, with the same
    values on every device.

    The frame is uniform in [W, T - 1 - W], its shift uniformly in (-W, W), with W at most a quarter of T.
    """
    last = config.crop_frames - 1
    widest = min(config.aug.specaug.warp, last // 4)
    draws = uniform(counters, 2, seed=config.train.seed, epoch=epoch, stream=Stream.TIME_WARP, view=view)
    origin = widest + draws[:, 0] * (last - 2 * widest)
    return origin, origin + (2 * draws[:, 1] - 1) * widest


def time_warp(log_mel: Tensor, origin: Tensor, target: Tensor) -> Tensor:
    """(B, F, T), (B,) frames -> (B, F, T): the frame at `origin` moves to `target`, both ends stay, and the frames
    between are stretched evenly, with linear interpolation.

    Ours: piecewise linear, where the paper's sparse image warp is a spline through the same three points.
    """
    last = log_mel.shape[2] - 1
    place = torch.arange(last + 1, device=log_mel.device, dtype=torch.float32)[None]
    origin, target = origin[:, None], target[:, None]
    before = place * (origin / target)
    after = origin + (place - target) * ((last - origin) / (last - target))
    source = torch.where(place < target, before, after).clamp(0, last)
    left = source.floor().clamp(max=last - 1)
    share = (source - left)[:, None]
    index = left.long()[:, None].expand(-1, log_mel.shape[1], -1)
    return torch.lerp(log_mel.gather(2, index), log_mel.gather(2, index + 1), share)


class SpecAugment:
    """Warps and masks of an epoch, drawn at once for all its clips."""

    def __init__(self, config: Config, counters: Tensor, epoch: int, views: int) -> None:
        """For (n,) counters and V views; on the device of the counters."""
        settings = config.aug.specaug
        self._masks = [masks_of(config, counters, epoch, view) for view in range(views if settings.masks else 0)]
        self._warps = [warps_of(config, counters, epoch, view) for view in range(views if settings.warp else 0)]

    def __call__(self, log_mel: Tensor, part: slice, view: int) -> Tensor:
        """(B, F, T) log-mels of the clips of a part -> one view of them, warped and then masked."""
        if self._warps:
            log_mel = time_warp(log_mel, *(array[part] for array in self._warps[view]))
        if self._masks:
            log_mel = mask(log_mel, [(begin[part], end[part]) for begin, end in self._masks[view]])
        return log_mel


class RunningNorm:
    """Mean and standard deviation over all bins and frames of the crops trained on so far, as two scalars.

    Source: authors (RunningNorm over each clip's bins and frames). Theirs is updated clip by clip in each worker of the
    loader, and starts again with each worker. Ours is deterministic: one state for the run, on the device; a batch is
    added whole and in the order of (seed, epoch), and is then normalised by all crops up to and including it. The state
    is part of a checkpoint. Sums are float64: after 250,000 clips a new one still has its full weight. Its input is
    normalised by the set's statistics, which does not change the result and keeps the zeros of masks at the mean.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        """Statistics are over all `ranks`."""
        self._ranks = ranks
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)
        """Number of values, their sum, the sum of their squares."""

    def __call__(self, crops: tuple[Tensor, ...], learn: bool = True) -> tuple[Tensor, ...]:
        """V crops (B, 1, F, T) -> the same, normalised. Statistics are updated with the first crop, from which both
        views are made.

        Args:
            learn: update the statistics first; without any statistics yet, crops are returned unchanged.
        """
        if learn:
            values = crops[0].double()
            count = torch.full((), values.numel(), dtype=torch.float64, device=values.device)
            self.moments = self.moments + self._ranks.sum(torch.stack([count, values.sum(), values.square().sum()]))
        mean, std = mean_and_std(self.moments)
        return tuple((crop - mean.float()) / std.float() for crop in crops)


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) values seen, sum, sum of squares -> () mean and () standard deviation; 0 and 1 of none. No host sync."""
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    return mean, torch.where(count > 0, std, 1.0)


def final_statistics(known: Mapping[str, float] | None, tensors: Mapping[str, Tensor]) -> dict[str, float] | None:
    """Mean and standard deviation of plain log-mels at the end of a run: those of the set, `known`, combined with the
    running ones where its checkpoint has any; or those that it inherited.
    """
    if GIVEN in tensors:
        mean, std = expected(tensors, GIVEN, torch.float64, (2,)).tolist()
        return {"mean": mean, "std": std}
    if TENSOR not in tensors:
        return None if known is None else dict(known)
    first = known or {"mean": 0.0, "std": 1.0}
    mean, std = (float(value) for value in mean_and_std(tensors[TENSOR]))
    return {**first, "mean": first["mean"] + first["std"] * mean, "std": first["std"] * std}


def resize_crops(bins: int, frames: int, draws: Tensor, config: RandomResizeCropConfig) -> tuple[Tensor, Tensor]:
    """Draws (B, 4) in [0, 1) -> offset and length (B, 2) of a random crop, in mel bins and in frames.

    The input is centred in a canvas of F x canvas_time * T; draws choose height, length and where the crop
    is. Source: BYOL-A section 3; authors.
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


def local_part(views: Tensor, frames: int, counters: Tensor, *, seed: int, epoch: int, view: int) -> Tensor:
    """(B, 1, F, T), (B,) counters -> (B, 1, F, `frames`) a part of each, uniform over all places where it fits."""
    draw = uniform(counters, 1, seed=seed, epoch=epoch, stream=Stream.LOCAL, view=view)[:, 0]
    first = (draw.double() * (views.shape[3] - frames + 1)).long()
    place = first[:, None] + torch.arange(frames, device=views.device)
    return views.gather(3, place[:, None, None].expand(-1, 1, views.shape[2], -1))


class Augmenter:
    """Turns normalised crops into views. One per run; its state is the mixup memory and the statistics of a running
    norm.
    """

    def __init__(
        self, config: Config, clips: int, device: torch.device, ranks: Ranks = ALONE, first_id: int = 0
    ) -> None:
        """For a split of `clips` clips, whose ids begin at `first_id`; of its memory a rank has its partitions."""
        self.config, self.seed, self._ranks = config.aug, config.train.seed, ranks
        self._local = config.local_frames if config.views.local else 0
        partitions = config.data.partitions
        self._own = ranks.share.of_partitions(partitions)
        begins = first_id + torch.arange(partitions, device=device) * clips // partitions
        size = config.aug.mixup.held(clips, partitions)
        bounds = begins[self._own.start + 1 : self._own.stop]
        clustered = config.aug.mixup.partner == "farthest"
        memory = MixupMemory(size, bounds, config.frontend.n_mels, config.crop_frames, clustered)
        self.memory = memory if config.aug.mixup.ratio > 0 else None
        self.norm = RunningNorm(device, ranks) if config.data.norm == "running" else None
        self.augmented = augmented_triton if device.type == "cuda" and triton_runs() else augmented_reference

    def __call__(
        self,
        clip_ids: Tensor,
        crops: tuple[Tensor, ...],
        epoch: int,
        counters: Tensor | None = None,
        centroids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """(B,) ids and V crops (B, 1, F, T) -> V views: a running norm, mixup with the memory, random resize crop, a
        random linear fader, noise; of the last `views.local` a part of `views.local_seconds`.

        `counters` (B,) replace the ids in random numbers where a clip may be drawn twice in an epoch. `centroids`
        (K, F) of unit norm are those of clips' means over time, for `aug.mixup.partner` = farthest.
        """
        counters = clip_ids if counters is None else counters
        crops = crops if self.norm is None else self.norm(crops)
        block = CPU_BLOCK if clip_ids.device.type == "cpu" else max(1, len(clip_ids))
        views = []
        for view, crop in enumerate(crops):
            ids, counts, clips = (torch.split(each, block) for each in (clip_ids, counters, crop))
            made = [self._view(*part, epoch, view, centroids) for part in zip(ids, counts, clips, strict=True)]
            views.append(made[0] if len(made) == 1 else torch.cat(made))
            if view >= WHOLE_VIEWS and self._local:
                views[-1] = local_part(views[-1], self._local, counters, seed=self.seed, epoch=epoch, view=view)
        if self.memory is not None:
            self.memory.push(clip_ids, crops[0], None if centroids is None else clusters_of(crops[0], centroids))
        return tuple(views)

    def plain(self, crops: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Crops (B, 1, F, T) without augmentation, normalised by the running norm as it is now."""
        return crops if self.norm is None else self.norm(crops, learn=False)

    def _view(
        self, clip_ids: Tensor, counters: Tensor, crop: Tensor, epoch: int, view: int, centroids: Tensor | None
    ) -> Tensor:
        slots = shares = frequency = time = None
        if self.memory is not None:
            draws = uniform(counters, 2, seed=self.seed, epoch=epoch, stream=Stream.MIXUP, view=view)
            order = None if centroids is None else farthest_first(centroids)[clusters_of(crop, centroids)]
            slots, shares = self.memory.draw(clip_ids, draws, self.config.mixup.ratio, order)
        if self.config.rrc.enabled:
            draws = uniform(counters, 4, seed=self.seed, epoch=epoch, stream=Stream.RESIZE_CROP, view=view)
            frequency, time = resize_crops(crop.shape[2], crop.shape[3], draws, self.config.rrc)
        memory = None if self.memory is None else self.memory.crops
        made: Tensor = self.augmented(crop, memory, slots, shares, frequency, time)
        drawn = {"seed": self.seed, "epoch": epoch, "view": view}
        if self.config.fader:
            ends = self.config.fader * (2 * uniform(counters, 2, stream=Stream.FADER, **drawn) - 1)
            head, tail = ends[:, :, None, None, None].unbind(1)
            made = made + torch.lerp(head, tail, torch.linspace(0, 1, made.shape[3], device=made.device))
        if self.config.noise:
            share = self.config.noise * uniform(counters, 1, stream=Stream.NOISE_SHARE, **drawn)[:, 0]
            noise = normal(counters, made[0].numel(), stream=Stream.NOISE, **drawn).view_as(made)
            made = log_mixup_exp(made, noise, share)
        return made

    def state(self) -> dict[str, Tensor]:
        """Tensors to save, the same on all ranks, which wait for each other: the memory of all partitions, and the
        statistics of a running norm.
        """
        normed = {} if self.norm is None else {TENSOR: self.norm.moments}
        if self.memory is None:
            return normed
        memory = self.memory
        tensors = {"crops": memory.crops[:-1], "clip_ids": memory.clip_ids[:-1], "written": memory.written}
        tensors |= {} if memory.clusters is None else {"clusters": memory.clusters[:-1]}
        return normed | {f"mixup.{name}": self._ranks.gather(own).flatten(0, 1) for name, own in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of state, saved by any number of ranks. Raises UserError: not the state of a memory of this size."""
        if self.norm is not None:
            self.norm.moments = expected(state, TENSOR, torch.float64, (3,)).to(self.norm.moments.device)
        if self.memory is None:
            return
        memory, partitions, own = self.memory, len(self._own) * self._ranks.world_size, self._own
        slots = slice(own.start * memory.size, own.stop * memory.size)
        written = expected(state, "mixup.written", torch.int64, (partitions,))
        if bool((written < 0).any()):
            raise misfit(f"mixup.written is {int(written.min())}")
        ids = expected(state, "mixup.clip_ids", torch.int64, (partitions * memory.size,))
        crops = expected(state, "mixup.crops", torch.float16, (len(ids), *memory.crops.shape[1:]))
        memory.crops[:-1] = crops[slots].to(memory.crops.device)
        memory.clip_ids[:-1] = ids[slots].to(memory.clip_ids.device)
        if memory.clusters is not None:
            clusters = expected(state, "mixup.clusters", torch.int64, (len(ids),))
            memory.clusters[:-1] = clusters[slots].to(memory.clusters.device)
        memory.written = written[own.start : own.stop].to(memory.written.device)
