"""SpecAugment on batches, in torch: time warp and masks.   B clips in a batch, F mel bins, T frames, M masks of a view.

Source: Park et al., arXiv 1904.08779, section 2; DECAR section 3. What is drawn is a function of (seed, epoch, view,
counter), so that it does not depend on where log-mels come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.data.order import masks_of
from unfused_fast.data.randomness import Stream, uniform


def mask(log_mel: Tensor, anchors: Tensor, shapes: Tensor) -> Tensor:
    """(B, F, T), anchors and shapes (B, 2 M) of order.masks_of -> (B, F, T) with zeros in the masks.

    Masks are whole rows or whole columns, so a row's and a column's factor make all of them in two products.
    """
    sizes = log_mel.shape[1:]
    anchor, shape = anchors.reshape(len(anchors), -1, 2), shapes.reshape(len(shapes), -1, 2)
    factors = []
    for axis, size in enumerate(sizes):
        place = torch.arange(size, device=log_mel.device)
        begin, end = anchor[..., axis, None], (anchor + shape)[..., axis, None]
        across = shape[..., 1 - axis, None] >= sizes[1 - axis]
        factors.append(((place >= begin) & (place < end) & across).any(dim=1).logical_not().to(log_mel.dtype))
    masked: Tensor = log_mel * factors[0][:, :, None]
    return masked.mul_(factors[1][:, None, :])


def warps_of(config: Config, counters: Tensor, epoch: int, view: int) -> tuple[Tensor, Tensor]:
    """(B,) counters -> (B,) float32 frame that is moved, and where to; on their device, the same on every one.

    The frame lies uniformly in [W, T - 1 - W], its shift uniformly in (-W, W), with W at most a quarter of T.
    """
    last = config.crop_frames - 1
    widest = min(config.aug.specaug.warp, last // 4)
    draws = uniform(counters, 2, seed=config.train.seed, epoch=epoch, stream=Stream.TIME_WARP, view=view)
    origin = widest + draws[:, 0] * (last - 2 * widest)
    return origin, origin + (2 * draws[:, 1] - 1) * widest


def time_warp(log_mel: Tensor, origin: Tensor, target: Tensor) -> Tensor:
    """(B, F, T), (B,) frames -> (B, F, T): what was at `origin` lies at `target`, both ends stay, all between is
    stretched evenly and interpolated linearly.

    Ours: straight lines, where the paper's sparse image warp is a spline through the same three points.
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
        """For (n,) counters, on whose device it works, and V views."""
        settings = config.aug.specaug
        self._masks = [masks_of(config, counters, epoch, view) for view in range(views if settings.masks else 0)]
        self._warps = [warps_of(config, counters, epoch, view) for view in range(views if settings.warp else 0)]

    def __call__(self, log_mel: Tensor, part: slice, view: int) -> Tensor:
        """(B, F, T) of the clips of a part -> the same of a view, warped and then masked."""
        if self._warps:
            log_mel = time_warp(log_mel, *(array[part] for array in self._warps[view]))
        return mask(log_mel, *(array[part] for array in self._masks[view])) if self._masks else log_mel
