"""Counter-based random numbers: a function of (seed, epoch, stream, clip id), never of batch order, rank or mode.

B clips in a batch. A resumed run, another batch size and another number of ranks see the same numbers for the same
clip.
Ours: SplitMix64's finaliser (Steele et al., OOPSLA 2014) in wrapping int64 arithmetic, so that CPU and GPU give the
same bits.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

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
