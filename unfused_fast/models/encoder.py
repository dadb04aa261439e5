"""The output of encoders, and how they mask padding.   B clips, C channels, F mel bins, T frames, D features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EncoderOutput(NamedTuple):
    """The result of an encoder, before pooling over time."""

    blocks: tuple[Tensor, ...]
    """Maps (B, C_i, F_i, T_i) after each block that may get a distillation head."""
    frames: Tensor
    """(B, T', D): features per time step of the last block."""
    frame_counts: Tensor | None
    """(B,) int64 valid time steps of `frames`; None when all are valid."""
    block_counts: tuple[Tensor | None, ...] = ()
    """The same of each map of `blocks`."""


def channels_last(log_mel: Tensor) -> Tensor:
    """(B, 1, F, T) with the strides of the channels-last layout, which the first convolution passes on to all maps.

    `contiguous` leaves a single channel's strides as they are, and the first block, the largest, would run in the other
    layout. A graph for export keeps the number of frames variable, so it must not read strides.
    """
    if torch.compiler.is_exporting():
        return log_mel
    return log_mel.to(memory_format=torch.channels_last)


def mask_time(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, C, F, T), (B,) -> x with zeros at the times t >= valid; x itself when `valid` is None."""
    if valid is None:
        return x
    times = torch.arange(x.shape[-1], device=x.device)
    # Not a product, so that padding that is not finite becomes zero too.
    return x.masked_fill(times >= valid[:, None, None, None], 0.0)
