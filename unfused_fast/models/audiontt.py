"""AudioNTT2020 with per-block outputs, projection head, and the heads of self-distillation.

B clips in a batch, F mel bins, T frames, C channels, D size of an embedding, P size of a projection, K clusters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unfused_fast.config import Config, Layer, ModelConfig
from unfused_fast.errors import UserError
from unfused_fast.models.efficientnet import EfficientNetB0
from unfused_fast.models.encoder import EncoderOutput, channels_last, convolve, mask_time

Pool = Literal["maxmean", "mean", "max"]


class ConvolutionBlock(nn.Sequential):
    """Convolution, BatchNorm, max pooling, ReLU.

    Source: the paper's reference 21, with ReLU before the pooling, which gives the same values and gradients from a
    quarter of the maps' values.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.MaxPool2d(2), nn.ReLU()
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C', F, T) -> (B, C, F // 2, T // 2)."""
        convolution, norm, pool, relu = self
        assert isinstance(convolution, nn.Conv2d)
        pooled: Tensor = relu(pool(convolve(convolution, norm, maps)))
        return pooled


class AudioNTT(nn.Module):
    """AudioNTT2020Task6: three convolution blocks, then two fully connected layers on each time step.

    5,321,856 parameters with 64 channels, 64 mel bins and D = 2048; 9,518,208 with a third connected layer. Source:
    paper reference 21; BYOL-A section 4; the third layer: authors' distillation code.
    The first three blocks are the student f_sd^s of the paper, the fully connected block its teacher f_sd^t.
    """

    def __init__(
        self, n_mels: int = 64, dim: int = 2048, channels: int = 64, dropout: float = 0.3, fc_layers: int = 2
    ) -> None:
        super().__init__()
        if n_mels % 8:
            raise UserError(
                f"frontend.n_mels = {n_mels}: AudioNTT halves the mel bins three times; want a multiple of 8"
            )
        self.dim = dim
        self.convolutions = nn.ModuleList(
            ConvolutionBlock(1 if block == 0 else channels, channels) for block in range(3)
        )
        layers: list[nn.Module] = [nn.Linear(channels * n_mels // 8, dim), nn.ReLU()]
        for _ in range(fc_layers - 1):
            layers += [nn.Dropout(dropout), nn.Linear(dim, dim), nn.ReLU()]
        self.fully_connected = nn.Sequential(*layers)

    def forward(self, log_mel: Tensor, frame_counts: Tensor | None = None) -> EncoderOutput:
        """(B, 1, F, T) -> three maps and (B, T // 8, D). With frame_counts a clip's result ignores its padding."""
        blocks, x = [], channels_last(mask_time(log_mel, frame_counts))
        counts: list[Tensor | None] = []
        for convolution in self.convolutions:
            frame_counts = None if frame_counts is None else frame_counts // 2
            x = mask_time(convolution(x), frame_counts)
            blocks.append(x)
            counts.append(frame_counts)
        steps = x.permute(0, 3, 2, 1).flatten(2)
        return EncoderOutput(tuple(blocks), self.fully_connected(steps), frame_counts, tuple(counts))


def build_encoder(config: Config) -> AudioNTT | EfficientNetB0:
    """A randomly initialised encoder by `model.encoder`."""
    model = config.model
    if model.encoder == "audiontt":
        return AudioNTT(config.frontend.n_mels, model.dim, model.channels, model.dropout, model.fc_layers)
    # DECAR's global max-pooling takes the largest over frequency and time, so with it frequency is pooled by max too.
    return EfficientNetB0("max" if model.pool == "max" else "mean")


def pool_time(steps: Tensor, counts: Tensor | None, how: Pool) -> Tensor:
    """(B, T, D), valid steps (B,) or None -> (B, D): max over time plus mean over time, or one of them."""
    if how == "maxmean":
        return pool_time(steps, counts, "mean") + pool_time(steps, counts, "max")
    if counts is None:
        return steps.mean(dim=1) if how == "mean" else steps.amax(dim=1)
    valid = (torch.arange(steps.shape[1], device=steps.device) < counts[:, None]).unsqueeze(-1)
    if how == "mean":
        return (steps * valid).sum(dim=1) / counts[:, None]
    return steps.masked_fill(~valid, -torch.inf).amax(dim=1)


def block_features(block: Tensor, counts: Tensor | None = None, how: Pool = "mean") -> Tensor:
    """(B, C, F, T) -> (B, C * F): the flattened map averaged over time, for student heads. Source:
    authors.
    """
    return pool_time(_block_steps(block), counts, how)


def _block_steps(block: Tensor) -> Tensor:
    """(B, C, F, T) -> (B, T, C * F)."""
    return block.permute(0, 3, 1, 2).flatten(2)


def block_sizes(encoder: nn.Module, config: Config) -> list[int]:
    """Sizes of the block features of an encoder: 2048, 1024, 512 of the paper's."""
    return [block_features(block).shape[1] for block in _on_meta(encoder, config).blocks]


def _on_meta(encoder: nn.Module, config: Config) -> EncoderOutput:
    """The shapes of an encoder's output for 32 frames: the longest step of an encoder."""
    made: EncoderOutput = copy.deepcopy(encoder).to("meta")(
        torch.empty(2, 1, config.frontend.n_mels, 32, device="meta")
    )
    return made


def layer_steps(output: EncoderOutput, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """(B, T, D) of a layer, and its (B,) valid steps, None where all are. Source: BYOL-A v2 puts the flattened map of
    the last block beside the fully connected layers' output; the layers before it: ours.
    """
    if layer == "encoder":
        return output.frames, output.frame_counts
    number = int(layer.removeprefix("block")) - 1
    return _block_steps(output.blocks[number]), output.block_counts[number]


def layer_shapes(encoder: nn.Module, config: Config, layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """D of each layer, and how many of its steps are one of the encoder."""
    output = _on_meta(encoder, config)
    steps = [layer_steps(output, layer)[0] for layer in layers]
    return [(made.shape[2], made.shape[1] // output.frames.shape[1]) for made in steps]


class Projector(nn.Sequential):
    """h_proj: Linear, BatchNorm, ReLU, Linear. Source: authors; paper section 4 (R^2048 -> R^512)."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def build_projector(model: ModelConfig, dim: int) -> nn.Sequential:
    """A projection head by `model.projector`, (B, dim) -> (B, P). `dropout` is g of DECAR-v1 without its last ReLU,
    which `PredictionHead` applies: what is clustered has both signs. Source: authors of DECAR; its paper says one layer
    of 512 units.
    """
    hidden, out, kind = model.proj_hidden, model.proj_dim, model.projector
    if kind == "batchnorm":
        return Projector(dim, hidden, out)
    if kind == "batchnorm3":
        layers: list[nn.Module] = []
        for size in (dim, hidden):
            layers += [nn.Linear(size, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden, out, bias=False))
    if kind == "linear":
        return nn.Sequential(nn.Linear(dim, out))
    if kind == "layernorm":
        return nn.Sequential(nn.Linear(dim, out), nn.LayerNorm(out), nn.Tanh())
    if kind == "mlp":
        return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
    first, second = nn.Dropout(model.proj_dropout), nn.Dropout(model.proj_dropout)
    return nn.Sequential(first, nn.Linear(dim, hidden), nn.ReLU(), second, nn.Linear(hidden, out))


class PretrainNetwork(nn.Module):
    """f_pre and h_proj of DECAR-v2, or f and g of DECAR-v1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model: ModelConfig = config.model
        self.encoder = build_encoder(config)
        self.projector = build_projector(model, self.encoder.dim)
        self.pool: Pool = model.pool
        self.l2_normalize = model.l2_normalize

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 1, F, T) -> projections (B, P) in float32, of unit norm with `model.l2_normalize`."""
        return self.project(self.encoder(log_mel))

    def project(self, output: EncoderOutput) -> Tensor:
        """An encoder's output -> as forward."""
        projection: Tensor = self.projector(pool_time(output.frames, output.frame_counts, self.pool)).float()
        return nn.functional.normalize(projection, dim=1) if self.l2_normalize else projection


class DistillOutput(NamedTuple):
    """The inputs of the distillation loss; float32."""

    deepest: Tensor
    """(B, K) logits l of the deepest classifier."""
    blocks: list[Tensor]
    """(B, K) logits z^i of each block."""
    pooled: Tensor | None = None
    """(B, D) features of the deepest block, with `distill.mse` = features; and"""
    adapted: tuple[Tensor, ...] = ()
    """(B, D) a linear map of the features of each block."""
    projection: Tensor | None = None
    """(B, P) projections that the contrast compares, with `distill.contrast`."""


class DistillNetwork(nn.Module):
    """f_sd with h_cl on its last block and h_proj^i on its first three (paper section 3, part 2)."""

    class_scores = "heads", "classifier"

    def __init__(self, config: Config, k: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        self.pool: Pool = config.model.pool
        dims = block_sizes(self.encoder, config)
        self.heads = nn.ModuleList(_block_head(dim, k, config.distill.head) for dim in dims)
        self.classifier = nn.Linear(self.encoder.dim, k)
        by_features = config.distill.mse == "features"
        self.adapters = nn.ModuleList(nn.Linear(dim, self.encoder.dim) for dim in (dims if by_features else ()))
        self.projector = build_projector(config.model, self.encoder.dim) if config.distill.contrast else None

    def forward(self, log_mel: Tensor) -> DistillOutput:
        """(B, 1, F, T) -> logits of the deepest classifier and of each block, and where wanted their features and a
        projection.
        """
        output = self.encoder(log_mel)
        pooled = pool_time(output.frames, output.frame_counts, self.pool)
        deepest = self.classifier(pooled).float()
        shallow = [block_features(block) for block in output.blocks]
        logits = [head(features).float() for head, features in zip(self.heads, shallow, strict=True)]
        adapted = tuple(adapter(features).float() for adapter, features in zip(self.adapters, shallow, strict=False))
        projection = None if self.projector is None else self.projector(pooled).float()
        return DistillOutput(deepest, logits, pooled.float() if adapted else None, adapted, projection)


class FinetuneNetwork(nn.Module):
    """An encoder and a linear head on its output, pooled over time by `model.pool`. Source: DECAR section 5."""

    class_scores = ("classifier",)

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        self.pool: Pool = config.model.pool
        self.classifier = nn.Linear(self.encoder.dim, classes)

    def forward(self, log_mel: Tensor, frame_counts: Tensor | None = None) -> Tensor:
        """(B, 1, F, T), valid frames (B,) or None -> logits (B, C) in float32, C classes."""
        output = self.encoder(log_mel, frame_counts)
        logits: Tensor = self.classifier(pool_time(output.frames, output.frame_counts, self.pool))
        return logits.float()


def _block_head(dim: int, k: int, kind: Literal["mlp3", "linear"]) -> nn.Module:
    if kind == "linear":
        return nn.Linear(dim, k)
    layers: list[nn.Module] = []
    for size in (dim, k):
        layers += [nn.Linear(size, k, bias=False), nn.BatchNorm1d(k), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(k, k, bias=False))
