"""Encoders and heads: published parameter counts, padding that never leaks, pooling by hand."""

import pytest
import torch

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.models.audiontt import AudioNTT, DistillNetwork, PretrainNetwork, Projector, block_features, pool_time
from unfused_fast.models.efficientnet import EfficientNetB0


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("dim", "count"), [(2048, 5_321_856), (1024, 1_649_792), (512, 600_192)])
def test_audiontt_parameters(dim: int, count: int) -> None:
    encoder = AudioNTT(dim=dim)
    assert parameters(encoder) == count
    assert parameters(encoder.convolutions) == 74_880, "the student's three blocks"


def test_head_parameters() -> None:
    assert parameters(Projector(2048, 2048, 512)) == 5_249_536
    for k, heads, classifier in ((12, 44_016, 24_588), (99, 414_810, 202_851), (585, 4_157_010, 1_198_665)):
        network = DistillNetwork(Config(), k)
        assert (parameters(network.heads), parameters(network.classifier)) == (heads, classifier)


@pytest.mark.parametrize("encoder", [AudioNTT(channels=4, dim=8), EfficientNetB0()], ids=["audiontt", "efficientnet"])
def test_every_map_is_channels_last(encoder: torch.nn.Module) -> None:
    """From the first convolution on, although one channel's layout is ambiguous: a third of a CPU's training time."""
    blocks = encoder(torch.randn(2, 1, 64, 32)).blocks
    assert all(block.is_contiguous(memory_format=torch.channels_last) for block in blocks)


def test_block_shapes_are_the_papers() -> None:
    encoder = AudioNTT().eval()
    output = encoder(torch.randn(2, 1, 64, 96))
    assert [block_features(block).shape[1] for block in output.blocks] == [2048, 1024, 512]
    assert encoder.block_dims(64) == (2048, 1024, 512)
    assert output.frames.shape == (2, 12, 2048)


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


def test_projections_have_unit_norm_unless_told_otherwise() -> None:
    small = {"model.channels": 4, "model.dim": 16, "model.proj_hidden": 16, "model.proj_dim": 8}
    view = torch.randn(6, 1, 64, 96)
    found = PretrainNetwork(with_values(Config(), small))(view)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    plain = PretrainNetwork(with_values(Config(), {**small, "model.l2_normalize": False}))(view)
    assert (plain.norm(dim=1) - 1).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["audiontt", "efficientnet_b0"])
def test_one_graph_without_breaks(name: str) -> None:
    small = {"model.channels": 4, "model.dim": 16, "model.proj_dim": 8, "model.proj_hidden": 16}
    config = with_values(Config(), {"model.encoder": name, **small})
    network = PretrainNetwork(config)
    explained = torch._dynamo.explain(network)(torch.randn(4, 1, 64, 96))
    assert explained.graph_break_count == 0 and explained.graph_count == 1
