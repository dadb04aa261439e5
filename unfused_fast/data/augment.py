"""Views of a batch: SpecAugment, normalisation by running statistics, log-mixup-exp, random resize crop, fader, noise.

B clips in a batch, F mel bins, T frames, V views, M masks of a view, K clusters of clips for mixup. What is random
comes with a batch, drawn for the whole epoch at once (randomness.py), so that views do not depend on how log-mels are
stored. On a GPU, mixup and resize crop are one kernel each (kernels/views.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.data.mixup import MixupMemory, clusters_of, farthest_first
from unfused_fast.data.randomness import Draws, Stream, normal
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.kernels.views import augmented_reference, augmented_triton, log_mixup_exp
from unfused_fast.optional import triton_runs
from unfused_fast.strict_state import expected, misfit

CPU_BLOCK = 128
"""Clips augmented at once on a CPU. Ours: intermediate results then stay in the cache, and reuse memory that is already
mapped; a GPU takes the whole batch."""
LEAST_STD = 1e-6
"""Smallest standard deviation; smaller ones are replaced by it. Ours: crops of pure silence have none."""
TENSOR = "norm.moments"
"""Name in a checkpoint."""
GIVEN = "norm.given"
"""Name in a checkpoint of the mean and standard deviation (2,) that a run inherited from its encoder's run."""


def kept_places(begins: Tensor, ends: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """(..., M) as of masks_of, sizes F and T -> (..., F) and (..., T) float32: 0 in the masks, 1 elsewhere."""
    place = torch.arange(sum(sizes), device=begins.device)
    inside = (place >= begins[..., None]) & (place < ends[..., None])
    return list(torch.split(inside.any(dim=-2).logical_not().to(torch.float32), list(sizes), dim=-1))


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


def spec_augmented(log_mels: Sequence[Tensor], draws: Draws, views: int) -> list[Tensor]:
    """One crop (B, F, T), or one for each view, and their draws -> V views, warped and then masked."""
    made = [log_mels[view % len(log_mels)] for view in range(views)]
    if draws.warps:
        made = [time_warp(*each) for each in zip(made, *draws.warps, strict=True)]
    if draws.masks:
        begins, ends = draws.masks
        kept = zip(*kept_places(begins, ends, made[0].shape[1:]), strict=True)
        made = [(view * bins[..., None]).mul_(frames[:, None]) for view, (bins, frames) in zip(made, kept, strict=True)]
    return made


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


def changed(views: Tensor, ends: Tensor | None, shares: Tensor | None, seeds: Tensor | None) -> Tensor:
    """(B, 1, F, T) with what is added to both ends (B, 2), linearly in between, and then mixed with noise, as a log-mel
    is, by (B,) shares; (B,) int64 seeds of the noise. None: left out.
    """
    if ends is not None:
        head, tail = ends[:, :, None, None, None].unbind(1)
        views = views + torch.lerp(head, tail, torch.linspace(0, 1, views.shape[3], device=views.device))
    if shares is not None and seeds is not None:
        noise = normal(seeds, views[0].numel(), seed=0, epoch=0, stream=Stream.NOISE).view_as(views)
        views = log_mixup_exp(views, noise, shares)
    return views


def local_part(views: Tensor, first: Tensor, frames: int) -> Tensor:
    """(B, 1, F, T), (B,) first frames -> (B, 1, F, `frames`) a part of each."""
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
        self.config, self._ranks = config.aug, ranks
        self._local, self._local_frames = config.views.local, config.local_frames
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
        self, clip_ids: Tensor, crops: tuple[Tensor, ...], draws: Draws, centroids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(B,) ids, V crops (B, 1, F, T) and their draws -> V views: a running norm, mixup with the memory, random
        resize crop, a random linear fader, noise; of the last `views.local` a part of `views.local_seconds`.
        `centroids` (K, F) of unit norm are those of clips' means over time, for `aug.mixup.partner` = farthest.
        """
        crops = crops if self.norm is None else self.norm(crops)
        drawn = *self._partners(clip_ids, crops, draws, centroids), *(draws.resize or (None, None))
        changes = *(draws.fader or (None,)), *(draws.noise or (None, None))
        views = [
            self._view(crop, *([None if each is None else each[view] for each in some] for some in (drawn, changes)))
            for view, crop in enumerate(crops)
        ]
        if draws.local:
            whole = max(1, len(views) - self._local)  # a pass over the clips has one view, and it is whole
            local = zip(views[whole:], draws.local[0][whole:], strict=False)
            views[whole:] = [local_part(view, first, self._local_frames) for view, first in local]
        if self.memory is not None:
            self.memory.push(clip_ids, crops[0], None if centroids is None else clusters_of(crops[0], centroids))
        return tuple(views)

    def plain(self, crops: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Crops (B, 1, F, T) without augmentation, normalised by the running norm as it is now."""
        return crops if self.norm is None else self.norm(crops, learn=False)

    def _partners(
        self, clip_ids: Tensor, crops: tuple[Tensor, ...], draws: Draws, centroids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Places in the memory and weights of what each view is mixed with, (V, B) both."""
        ratio = self.config.mixup.ratio
        if self.memory is None:
            return None, None
        if centroids is None:
            return self.memory.draw(clip_ids, draws.mixup[0], ratio)
        farthest = farthest_first(centroids)
        made = [
            self.memory.draw(clip_ids, drawn, ratio, farthest[clusters_of(crop, centroids)])
            for crop, drawn in zip(crops, draws.mixup[0], strict=False)
        ]
        slots, shares = zip(*made, strict=True)
        return torch.stack(slots), torch.stack(shares)

    def _view(self, crop: Tensor, drawn: Sequence[Tensor | None], changes: Sequence[Tensor | None]) -> Tensor:
        """One view of a batch; `drawn` are the arguments of `augmented` that follow the memory, `changes` those of
        `changed`.
        """
        memory = None if self.memory is None else self.memory.crops
        block = CPU_BLOCK if crop.device.type == "cpu" else max(1, len(crop))
        made = []
        for start in range(0, max(1, len(crop)), block):
            part = slice(start, start + block)
            of_part, then = ([None if each is None else each[part] for each in some] for some in (drawn, changes))
            made.append(changed(self.augmented(crop[part], memory, *of_part), *then))
        return made[0] if len(made) == 1 else torch.cat(made)

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
