"""EfficientNet-B0 against Table 1 of arXiv 1905.11946, and a batch of padded clips against each clip alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unfused_fast.models.efficientnet import EfficientNetB0


@pytest.fixture
def model() -> EfficientNetB0:
    """In eval mode, with statistics and scales of batch normalisation that are not those of a new model."""
    torch.manual_seed(0)
    model = EfficientNetB0()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def test_parameters_are_those_of_b0_without_classifier() -> None:
    # B0 as published: 5,288,548. Its classifier: 1280 x 1000 + 1000. Two of its three input channels: 2 x 32 x 9.
    assert sum(p.numel() for p in EfficientNetB0().parameters()) == 4_006_972 == 5_288_548 - 1_281_000 - 576


def test_shapes_are_those_of_the_table(model: EfficientNetB0) -> None:
    shapes: list[tuple[int, ...]] = []
    for module in (model.stem, *(stage[-1] for stage in model.stages), model.head):
        module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output[0].shape[1:])))
    blocks, frames, *_ = model(torch.randn(2, 1, 64, 96))
    # Worked by hand from Table 1: 224 -> 112 in the stem, then entering resolutions 112, 112, 56, 28, 14, 14, 7, 7.
    large = [(32, 32, 48), (16, 32, 48), (24, 16, 24), (40, 8, 12), (80, 4, 6), (112, 4, 6)]
    assert shapes == [*large, (192, 2, 3), (320, 2, 3), (1280, 2, 3)] and frames.shape == (2, 3, 1280)
    assert [tuple(block.shape[1:]) for block in blocks] == [large[2], large[3], large[5]]


@pytest.mark.parametrize(("frequency_pool", "padding"), [("mean", 1e3), ("max", float("nan"))])
def test_a_padded_clip_gives_what_it_gives_alone(model: EfficientNetB0, frequency_pool: str, padding: float) -> None:
    model.frequency_pool = frequency_pool  # type: ignore[assignment]
    lengths = [1, 31, 32, 33, 64, 97, 120]
    clips = [torch.randn(1, 1, 40, length) for length in lengths]
    batch = torch.full((len(clips), 1, 40, 130), padding)
    for i, clip in enumerate(clips):
        batch[i, ..., : lengths[i]] = clip[0]
    together = model(batch, torch.tensor(lengths))
    assert together.frame_counts.dtype == torch.int64
    assert together.frame_counts.tolist() == [math.ceil(length / 32) for length in lengths]
    for i, clip in enumerate(clips):
        alone = model(clip)
        steps = alone.frames.shape[1]
        assert steps == together.frame_counts[i]
        torch.testing.assert_close(together.frames[i, :steps], alone.frames[0], atol=1e-4, rtol=1e-4)
        assert not together.frames[i, steps:].any()
        for padded, block in zip(together.blocks, alone.blocks, strict=True):
            torch.testing.assert_close(padded[i, ..., : block.shape[-1]], block[0], atol=1e-4, rtol=1e-4)
            assert not padded[i, ..., block.shape[-1] :].any()


def test_gradient_reaches_every_parameter_and_no_padding() -> None:
    torch.manual_seed(0)
    model = EfficientNetB0()
    log_mel = torch.randn(4, 1, 64, 96, requires_grad=True)
    blocks, frames, *_ = model(log_mel, torch.tensor([96, 50, 64, 96]))
    (frames.square().mean() + sum(block.square().mean() for block in blocks)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert log_mel.grad is not None and log_mel.grad[0].any()
    assert not log_mel.grad[1, ..., 50:].any()


def test_max_pool_over_frequency_and_time_is_the_global_one(model: EfficientNetB0) -> None:
    log_mel, maps = torch.randn(2, 1, 64, 96), []
    model.head.register_forward_hook(lambda _module, _inputs, output: maps.append(nn.functional.silu(output[0])))
    model.frequency_pool = "max"
    assert torch.equal(model(log_mel).frames.amax(dim=1), maps[0].amax(dim=(2, 3)))


def test_weights_start_with_fan_out_variance(model: EfficientNetB0) -> None:
    five_by_five = torch.cat([block.depthwise.conv.weight.detach().flatten() for block in model.stages[5]])
    assert five_by_five.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    assert model.head.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.05)
