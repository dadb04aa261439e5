"""Counter-based random numbers: a function of (seed, epoch, stream, clip id), never of batch order, rank or mode; and
what the views of clips draw.

B clips of a batch or n of an epoch, V views, M masks of a view, F mel bins, T frames. A resumed run, another batch size
and another number of ranks see the same numbers for the same clip.
Ours: SplitMix64's finaliser (Steele et al., OOPSLA 2014) in wrapping int64 arithmetic, so that CPU and GPU give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from unfused_fast.config import Config, RandomResizeCropConfig

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Stream(IntEnum):
    """Purpose of a random number; a view adds its index times 16."""

    CROP = 0
    SPECAUGMENT = 1
    MIXUP = 2
    RESIZE_CROP = 3
    TIME_WARP = 4
    FADER = 5
    NOISE_SHARE = 6
    NOISE = 7
    LOCAL = 8


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _logical_shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _logical_shift(value, 27)) * _signed(_SECOND)
    return value ^ _logical_shift(value, 31)


def key(*counters: int) -> int:
    """One 64-bit key from counters such as (seed, epoch, stream)."""
    state = 0
    for counter in counters:
        state = _mix_int(state + _GOLDEN + (counter & _MASK))
    return state


def uniform(clip_ids: Tensor, draws: int, *, seed: int, epoch: int, stream: Stream, view: int = 0) -> Tensor:
    """(B,) int64 clip ids -> (B, draws) float32 in [0, 1), on the ids' device."""
    rows = bits(clip_ids, seed, epoch, int(stream) + 16 * view)
    steps = torch.arange(1, draws + 1, device=clip_ids.device) * _signed(_GOLDEN)
    return _logical_shift(_mix(rows[:, None] + steps), 40).to(torch.float32) / float(1 << 24)


def normal(clip_ids: Tensor, draws: int, *, seed: int, epoch: int, stream: Stream, view: int = 0) -> Tensor:
    """(B,) int64 clip ids -> (B, draws) float32 of N(0, 1), by Box and Muller's transform of `uniform`."""
    pairs = -(-draws // 2)
    drawn = uniform(clip_ids, 2 * pairs, seed=seed, epoch=epoch, stream=stream, view=view)
    radius, angle = (-2 * (1 - drawn[:, :pairs]).log()).sqrt(), 2 * torch.pi * drawn[:, pairs:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :draws]


def bits(ids: Tensor, *counters: int) -> Tensor:
    """(B,) int64 ids -> (B,) int64 of 64 random bits, different for different ids; on the ids' device."""
    return _mix(ids.to(torch.int64) * _signed(_GOLDEN) + _signed(key(*counters)))


def exponential(ids: Tensor, *counters: int) -> Tensor:
    """(B,) int64 ids -> (B,) float64 of the exponential distribution of rate 1, on the ids' device."""
    return -((_logical_shift(bits(ids, *counters), 11).to(torch.float64) + 0.5) * 2.0**-53).log()


class Draws(NamedTuple):
    """What V views of n clips draw, each (V, n, ...) on the device of the clips; empty for what the config leaves out.

    Ours: 80 bytes for two views of a clip by default; drawn batch by batch, they took most of a step's small kernels.
    """

    masks: tuple[Tensor, ...]
    """Begin and end of masks, (V, n, M) float32: see masks_of."""
    warps: tuple[Tensor, ...]
    """Frame that is moved, and where to, (V, n) float32."""
    mixup: tuple[Tensor, ...]
    """(V, n, 2) float32 in [0, 1): see MixupMemory.draw."""
    resize: tuple[Tensor, ...]
    """Offset and length of the crop along frequency and along time, (V, n, 2) float32 both."""
    fader: tuple[Tensor, ...]
    """What is added to the first and the last frame, (V, n, 2) float32."""
    noise: tuple[Tensor, ...]
    """Share of the noise, (V, n) float32; and (V, n) int64 from which it is drawn, batch by batch."""
    local: tuple[Tensor, ...]
    """(V, n) int64 first frame of a local view, uniform over all places where it fits; not read of the first two."""

    def of(self, part: slice) -> Draws:
        """Those of some of the clips; no copy."""
        return Draws(*(tuple(array[:, part] for array in arrays) for arrays in self))


def draws_of(config: Config, counters: Tensor, epoch: int, views: int) -> Draws:
    """(n,) counters -> what V views of these clips draw, with the same values on every device."""
    aug, sizes = config.aug, (config.frontend.n_mels, config.crop_frames)

    def of_all(wanted: bool, draw: Callable[[int], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        made = zip(*(draw(view) for view in range(views)), strict=True) if wanted else ()
        return tuple(torch.stack(each) for each in made)

    def numbers(count: int, stream: Stream, view: int) -> Tensor:
        return uniform(counters, count, seed=config.train.seed, epoch=epoch, stream=stream, view=view)

    places = config.crop_frames - config.local_frames + 1
    return Draws(
        of_all(aug.specaug.masks > 0, lambda view: masks_of(config, counters, epoch, view)),
        of_all(aug.specaug.warp > 0, lambda view: warps_of(config, counters, epoch, view)),
        of_all(aug.mixup.ratio > 0, lambda view: [numbers(2, Stream.MIXUP, view)]),
        of_all(aug.rrc.enabled, lambda view: resize_crops(*sizes, numbers(4, Stream.RESIZE_CROP, view), aug.rrc)),
        of_all(aug.fader > 0, lambda view: [aug.fader * (2 * numbers(2, Stream.FADER, view) - 1)]),
        of_all(
            aug.noise > 0,
            lambda view: [
                aug.noise * numbers(1, Stream.NOISE_SHARE, view)[:, 0],
                bits(counters, config.train.seed, epoch, int(Stream.NOISE) + 16 * view),
            ],
        ),
        of_all(config.views.local > 0, lambda view: [(numbers(1, Stream.LOCAL, view)[:, 0].double() * places).long()]),
    )


def masks_of(config: Config, counters: Tensor, epoch: int, view: int) -> tuple[Tensor, Tensor]:
    """(n,) counters -> SpecAugment masks, a width from 0 to the largest at any place where it fits: first and one past
    the last place of each, (n, M) float32 both; on the device of the counters, with the same values on every device.

    Places 0 to F - 1 are mel bins, F to F + T - 1 frames. Ours: so a few kernels serve both axes.
    """
    settings = config.aug.specaug
    axes = (config.frontend.n_mels, settings.freq_width), (config.crop_frames, settings.time_width)
    masks = [settings.freq_masks, settings.time_masks]
    draws = uniform(counters, 2 * sum(masks), seed=config.train.seed, epoch=epoch, stream=Stream.SPECAUGMENT, view=view)
    begins, ends, first = [], [], 0
    for (size, widest), draw in zip(axes, torch.split(draws.reshape(-1, sum(masks), 2), masks, dim=1), strict=True):
        width = torch.floor(draw[..., 0] * (min(widest, size) + 1))
        begins.append(torch.floor(draw[..., 1] * (size - width + 1)) + first)
        ends.append(begins[-1] + width)
        first += size
    return torch.cat(begins, dim=1), torch.cat(ends, dim=1)


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
