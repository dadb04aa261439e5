"""EfficientNet-B0 on log-mel, without its classifier.   B clips, C channels, F mel bins, T frames, D features.

Source: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946, Table 1, for one
input channel: 4,006,972 parameters. A stride-2 layer halves a length, rounding up. Convolutions pad by k // 2 on both
sides, so that a clip's output does not depend on its padding; TensorFlow's "same" padding depends on the length.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfused_fast.models.encoder import EncoderOutput, channels_last, convolve, mask_time


class Stage(NamedTuple):
    """A row of Table 1 that is made of MBConv blocks; only its first block has the stride."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    layers: int


STAGES = (
    Stage(expansion=1, kernel=3, stride=1, channels=16, layers=1),
    Stage(expansion=6, kernel=3, stride=2, channels=24, layers=2),
    Stage(expansion=6, kernel=5, stride=2, channels=40, layers=2),
    Stage(expansion=6, kernel=3, stride=2, channels=80, layers=3),
    Stage(expansion=6, kernel=5, stride=1, channels=112, layers=3),
    Stage(expansion=6, kernel=5, stride=2, channels=192, layers=4),
    Stage(expansion=6, kernel=3, stride=1, channels=320, layers=1),
)
"""Strides: Table 1 lists the resolution that enters each stage; a stage halves it where the next entry is half
as large. The stem, before these stages, halves too."""

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
DISTILLED_CHANNELS = (24, 40, 112)
"""Stages whose maps `EncoderOutput.blocks` holds. Ours: three blocks of growing depth, as in the UnFuSeD student."""


class EfficientNetB0(nn.Module):
    """Log-mel (B, 1, F, T) -> `EncoderOutput`: maps of three stages, and 1280 features per time step.

    In eval mode a clip with `frame_counts` gives the same output as alone and unpadded, whatever the padding holds. In
    train mode the statistics of batch normalisation include the padding, so pad little. Ours: no block is dropped in
    training, where the released EfficientNet-B0 drops up to a fifth.

    Args:
        frequency_pool: how the last map (B, 1280, F', T') becomes frames; the caller pools over time. The
            paper of DECAR takes one maximum over frequency and time together, which is "max" here and a maximum over
            time by the caller; its released code averages over both, which is "mean" and a mean by the caller.
    """

    def __init__(self, frequency_pool: Literal["mean", "max"] = "mean") -> None:
        super().__init__()
        self.dim = HEAD_CHANNELS
        self.frequency_pool = frequency_pool
        self.stem = ConvNorm(1, STEM_CHANNELS, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for stage in STAGES:
            first = MBConv(channels, stage.channels, stage.expansion, stage.kernel, stage.stride)
            channels = stage.channels
            more = (MBConv(channels, channels, stage.expansion, stage.kernel, 1) for _ in range(stage.layers - 1))
            self.stages.append(nn.ModuleList([first, *more]))
        self.head = ConvNorm(channels, HEAD_CHANNELS, kernel=1)
        self.apply(_initialise)

    def forward(self, log_mel: Tensor, frame_counts: Tensor | None = None) -> EncoderOutput:
        """(B, 1, F, T), (B,) int64 valid frames of each clip -> maps and frames, zero where no frame is valid."""
        x, valid = self.stem(channels_last(mask_time(log_mel, frame_counts)), frame_counts)
        x = functional.silu(x)
        maps, counts = [], []
        for stage, blocks in zip(STAGES, self.stages, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x, valid = block(x, valid)
            if stage.channels in DISTILLED_CHANNELS:
                maps.append(mask_time(x, valid))
                counts.append(valid)
        x, valid = self.head(x, valid)
        x = mask_time(functional.silu(x), valid)
        pooled = x.mean(dim=2) if self.frequency_pool == "mean" else x.amax(dim=2)
        return EncoderOutput(tuple(maps), pooled.transpose(1, 2), valid, tuple(counts))


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation; also carries the number of valid frames through the stride.

    Momentum and epsilon are those of the released EfficientNet (0.99 in TensorFlow's sense, and 1e-3).
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), (B,) -> the same after the layer. A kernel wider than 1 needs x masked."""
        if valid is not None and self.stride == 2:
            valid = (valid + 1) // 2
        return convolve(self.conv, self.norm, x), valid


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in (0, 1) computed from the means of all channels over the valid frames."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, C, F, T), (B,) -> (B, C, F, T)."""
        if valid is None:
            mean = x.mean(dim=(2, 3), keepdim=True)
        else:
            # In float32: a sum over a long clip outgrows half precision.
            count = (x.shape[2] * valid).clamp(min=1)[:, None, None, None]
            mean = (mask_time(x, valid).sum(dim=(2, 3), keepdim=True, dtype=torch.float32) / count).to(x.dtype)
        return x * torch.sigmoid(self.expand(functional.silu(self.reduce(mean))))


class MBConv(nn.Module):
    """Mobile inverted bottleneck: widen, depthwise convolution, squeeze-excite, narrow; residual where shapes allow."""

    def __init__(self, channels_in: int, channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels
        self.widen = ConvNorm(channels_in, wide, kernel=1) if expansion != 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.squeeze_excite = SqueezeExcite(wide, channels_in // 4)  # a quarter of the block's input, not of `wide`
        self.narrow = ConvNorm(wide, channels, kernel=1)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C_in, F, T), (B,) -> (B, C, F', T'), (B,)."""
        y = x
        if self.widen is not None:
            y = functional.silu(self.widen(y, valid)[0])
        y, valid = self.depthwise(mask_time(y, valid), valid)
        y = self.squeeze_excite(functional.silu(y), valid)
        y, valid = self.narrow(y, valid)
        return x + y if self.residual else y, valid


def _initialise(module: nn.Module) -> None:
    """Normal with variance 2 / fan-out; a depthwise filter's fan-out is its area. Source: the released EfficientNet."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
