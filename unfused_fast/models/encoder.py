"""What encoders have in common: their output, masks of padding, a convolution with its normalisation.

B clips, C channels, F mel bins, T frames, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


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


def convolve(convolution: nn.Conv2d, norm: nn.Module, maps: Tensor) -> Tensor:
    """A convolution, then batch normalisation (SyncBatchNorm too).

    Ours: in eval mode the constants of the second are multiplied into the first, so that its maps, the largest tensors
    of an encoder, are not read and written once more (measured on a CPU). The modules stay as they are, which those of
    torch.nn.utils.fusion do not.
    """
    if norm.training:
        made: Tensor = norm(convolution(maps))
        return made
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = 0.0 if convolution.bias is None else convolution.bias
    return functional.conv2d(
        maps,
        convolution.weight * scale[:, None, None, None],
        norm.bias + (bias - norm.running_mean) * scale,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


def mask_time(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, C, F, T), (B,) -> x with zeros at the times t >= valid; x itself when `valid` is None."""
    if valid is None:
        return x
    times = torch.arange(x.shape[-1], device=x.device)
    # Not a product, so that padding that is not finite becomes zero too.
    return x.masked_fill(times >= valid[:, None, None, None], 0.0)
