"""Encoders and heads: published parameter counts, padding that never leaks, pooling by hand."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.models.audiontt import (
    AudioNTT,
    ConvolutionBlock,
    DistillNetwork,
    PretrainNetwork,
    Projector,
    build_projector,
    pool_time,
)
from unfused_fast.models.cost import encoder_cost
from unfused_fast.models.efficientnet import EfficientNetB0
from unfused_fast.models.encoder import convolve
from unfused_fast.training.options import Options, compiled

CONFIG = with_values(Config(), {"model.channels": 4, "model.dim": 8, "model.proj_hidden": 8, "model.proj_dim": 8})


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("dim", "count"), [(2048, 5_321_856), (1024, 1_649_792), (512, 600_192)])
def test_audiontt_parameters(dim: int, count: int) -> None:
    assert parameters(AudioNTT(dim=dim)) == count


def test_costs_by_hand() -> None:
    # 3 x 3 convolutions at 64 x 96, 32 x 48 and 16 x 24; BatchNorm has 2 parameters a channel
    convolutions = [9 * 64 + 64, *[9 * 64 * 64 + 64] * 2]
    student = sum(convolutions) + 3 * 2 * 64
    connected = (512 * 2048 + 2048) + (2048 * 2048 + 2048)
    macs = 9 * 64 * 64 * 96 + 9 * 64 * 64 * (32 * 48 + 16 * 24)
    found = encoder_cost(Config(), "student3")
    assert (found.parameters, found.macs) == (student, macs) and student == 74_880
    whole = encoder_cost(Config(), "full")
    assert whole.parameters == student + connected == 5_321_856
    assert whole.macs == macs + 12 * (512 * 2048 + 2048 * 2048), "12 time steps are left of 96 frames"
    assert encoder_cost(with_values(Config(), {"model.encoder": "efficientnet_b0"}), "full").parameters == 4_006_972


def test_head_parameters() -> None:
    assert parameters(Projector(2048, 2048, 512)) == 5_249_536
    for k, heads, classifier in ((12, 44_016, 24_588), (99, 414_810, 202_851), (585, 4_157_010, 1_198_665)):
        network = DistillNetwork(Config(), k)
        assert (parameters(network.heads), parameters(network.classifier)) == (heads, classifier)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("encoder", [AudioNTT(channels=4, dim=8), EfficientNetB0()], ids=["audiontt", "efficientnet"])
def test_every_map_is_channels_last(encoder: torch.nn.Module, training: bool) -> None:
    """From the first convolution on, although one channel's layout is ambiguous: a third of a CPU's training time."""
    blocks = encoder.train(training)(torch.randn(2, 1, 64, 32)).blocks
    assert all(block.is_contiguous(memory_format=torch.channels_last) for block in blocks)


def block_and_theirs() -> tuple[ConvolutionBlock, torch.nn.Sequential]:
    """A block, and the order of the paper with copies of its layers; some scales of BatchNorm are below zero."""
    torch.manual_seed(0)
    block = ConvolutionBlock(4, 6).to(memory_format=torch.channels_last)
    for tensor in (*block[1].parameters(), block[1].running_mean):
        tensor.data.normal_()
    block[1].running_var.uniform_(0.1, 2)
    convolution, norm, pool, relu = copy.deepcopy(block)
    return block, torch.nn.Sequential(convolution, norm, relu, pool)


def gradients(network: torch.nn.Module, mixed: bool = False) -> list[torch.Tensor]:
    """Output, gradients of input and parameters, and buffers after a step."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(3, 4, 16, 24, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        made = network(maps)
    (made * torch.randn(3, 6, 8, 12, generator=generator)).sum().backward()
    return [made.detach(), maps.grad, *(one.grad for one in network.parameters()), *network.buffers()]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_block_learns_as_the_papers(mixed: bool) -> None:
    """Pooling before ReLU: the same bits of all."""
    own, theirs = (gradients(network.train(), mixed) for network in block_and_theirs())
    assert len(own) == 9 and all(map(torch.equal, own, theirs))


def test_a_frozen_block_gives_what_the_papers_does() -> None:
    block, theirs = block_and_theirs()
    before = copy.deepcopy(block.state_dict())
    torch.testing.assert_close(gradients(block.eval()), gradients(theirs.eval()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize("given", [{"bias": False}, {"groups": 4, "stride": 2, "bias": False}, {"dilation": 2}])
@pytest.mark.parametrize("of", [torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm])
def test_a_frozen_convolution_contains_its_normalisation(given: dict[str, Any], of: type[torch.nn.Module]) -> None:
    """`ConvNorm` of EfficientNet-B0 has no bias, groups and strides; several ranks have SyncBatchNorm."""
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(4, 8, 3, padding=1, **given), of(8, eps=1e-3).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.1, 2)
    maps = torch.randn(2, 4, 16, 24)
    torch.testing.assert_close(convolve(convolution, norm, maps), norm(convolution(maps)), atol=1e-5, rtol=1e-5)


def test_padding_never_reaches_a_clips_result() -> None:
    torch.manual_seed(0)
    encoder = AudioNTT(dim=32, channels=4).eval()
    for norm in (module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.bias.data.normal_()
    counts = torch.tensor([160, 96, 131, 103])
    batch = torch.randn(4, 1, 64, 160)
    output = encoder(batch, counts)
    for row, frames in enumerate(counts.tolist()):
        alone = encoder(batch[row : row + 1, :, :, :frames])
        steps = alone.frames.shape[1]
        assert output.frame_counts[row] == steps
        torch.testing.assert_close(output.frames[row, :steps], alone.frames[0], atol=1e-5, rtol=1e-5)
        pooled = pool_time(output.frames, output.frame_counts, "maxmean")[row]
        torch.testing.assert_close(pooled, pool_time(alone.frames, None, "maxmean")[0], atol=1e-5, rtol=1e-5)


def test_pooling_by_hand() -> None:
    steps = torch.tensor([[[1.0, 8.0], [3.0, 2.0], [100.0, 100.0]]])
    counts = torch.tensor([2])
    assert pool_time(steps, counts, "mean").tolist() == [[2.0, 5.0]]
    assert pool_time(steps, counts, "max").tolist() == [[3.0, 8.0]]
    assert pool_time(steps, counts, "maxmean").tolist() == [[5.0, 13.0]]
    assert pool_time(steps[:, :2], None, "maxmean").tolist() == [[5.0, 13.0]]


@pytest.mark.parametrize("unit", [True, False])
def test_projections_have_unit_norm_unless_told_otherwise(unit: bool) -> None:
    torch.manual_seed(0)
    norms = PretrainNetwork(with_values(CONFIG, {"model.l2_normalize": unit}))(torch.randn(6, 1, 64, 96)).norm(dim=1)
    assert ((norms - 1).abs().max().item() < 1e-5) == unit


@pytest.mark.parametrize(
    ("name", "build"), [("audiontt", PretrainNetwork), ("efficientnet_b0", lambda config: DistillNetwork(config, 5))]
)
def test_one_graph_without_breaks(name: str, build: Callable[[Config], torch.nn.Module]) -> None:
    network = build(with_values(CONFIG, {"model.encoder": name}))
    explained = torch._dynamo.explain(network)(torch.randn(4, 1, 64, 96))
    assert explained.graph_break_count == 0 and explained.graph_count == 1


@torch._dynamo.config.patch(recompile_limit=3)
def test_many_trainings_of_one_process_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tasks of as many classes, and two widths, each as in stage 1: views without gradient, with, in eval mode:
    more graphs of a function than torch.compile keeps here, 3 in place of 8. They are traced and guarded as always, but
    run as they are: no C++ compiler is needed.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("unfused_fast.training.options.missing_compiler", lambda language: None)
    options, view = Options(torch.device("cpu"), compile=True), torch.zeros(2, 1, 64, 32)
    for classes in range(2, 6):
        compiled(DistillNetwork(CONFIG, classes), options)(view)
    for channels in (2, 4):
        network = PretrainNetwork(with_values(CONFIG, {"model.channels": channels}))
        forward = compiled(network, options)
        for training, gradient in ((True, False), (True, True), (False, False)):
            network.train(training)
            with torch.set_grad_enabled(gradient):
                forward(view)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("batchnorm", 8 * 5 + 5 + 2 * 5 + 5 * 3 + 3),
        ("batchnorm3", 8 * 5 + 2 * 5 + 5 * 5 + 2 * 5 + 5 * 3),
        ("mlp", 8 * 5 + 5 + 5 * 3 + 3),
        ("linear", 8 * 3 + 3),
        ("layernorm", 8 * 3 + 3 + 2 * 3),
    ],
)
def test_projection_heads_have_their_layers(kind: str, parameters: int) -> None:
    values = {"model.projector": kind, "model.proj_hidden": 5, "model.proj_dim": 3}
    projector = build_projector(with_values(CONFIG, values).model, 8)
    assert sum(parameter.numel() for parameter in projector.parameters()) == parameters
    assert projector(torch.randn(4, 8)).shape == (4, 3)
