"""What `plan` computes without making anything, beside files and tensors that are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from unfused_fast.commands import plan_bytes
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.mel import log_mel_statistics
from unfused_fast.models.audiontt import PretrainNetwork
from unfused_fast.shards.packing import layout as shards_plan
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.stages.pretraining import pretrain
from unfused_fast.training.options import Options

CLIPS, SECONDS = 70, 1.05
TINY = {
    "model.channels": 4,
    "model.dim": 32,
    "model.proj_hidden": 32,
    "model.proj_dim": 16,
    "cluster.k": 4,
    "train.batch_size": 16,
    "train.epochs": 1,
    "train.amp": "fp32",
    "aug.mixup.memory": 32,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for number in range(CLIPS):
        noise = generator.uniform(-0.5, 0.5, plan_bytes.clip_samples(SECONDS)).astype("float32")
        soundfile.write(folder / f"clip-of-some-name-{number:03d}.wav", noise, 16000)
    return folder


@pytest.fixture(scope="module")
def packed(source: Path) -> ShardSet:
    return pack(source_rows(source), source.parent / "set", workers=0, statistics=log_mel_statistics).shard_set


def shard_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in (".tar", ".idx"))


def test_shards_to_the_byte(packed: ShardSet) -> None:
    size, tars = plan_bytes.shard_sizes(CLIPS, SECONDS)
    assert (size, tars) == (shard_bytes(packed.directory), len(packed.shard_paths("train"))) and tars == 2


def test_shards_that_their_largest_size_cuts(
    source: Path, packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_plan, "SHARD_BYTES", 10 * 40_000)
    monkeypatch.setattr(plan_bytes, "SHARD_BYTES", 10 * 40_000)
    shards = pack(source_rows(source), tmp_path / "set", workers=0, statistics=log_mel_statistics).shard_set
    assert plan_bytes.shard_sizes(CLIPS, SECONDS) == (shard_bytes(shards.directory), len(shards.shard_paths("train")))


def test_flac_shards_by_their_share(source: Path, tmp_path: Path) -> None:
    pack(source_rows(source), tmp_path / "set", codec="flac", workers=0, statistics=log_mel_statistics)
    samples = 2 * CLIPS * plan_bytes.clip_samples(SECONDS)
    one, *_ = (soundfile.read(path, dtype="int16")[0] for path in sorted(source.iterdir()))
    soundfile.write(tmp_path / "one.flac", one, 16000)
    share = (tmp_path / "one.flac").stat().st_size / (samples / CLIPS)
    assert plan_bytes.shard_sizes(CLIPS, SECONDS, share)[0] == pytest.approx(shard_bytes(tmp_path / "set"), rel=0.01)


def test_the_clips_table_in_memory(packed: ShardSet) -> None:
    held = pq.read_table(packed.directory / "clips.parquet").nbytes
    assert plan_bytes.clips_table_bytes(CLIPS) == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optim.name": "adamw", "bank.dtype": "bf16"},
        {"optim.name": "sgd", "aug.mixup.ratio": 0.0, "model.prediction": "linear"},
        {"model.encoder": "efficientnet_b0", "data.crop_seconds": 2.0},
    ],
)
def test_what_a_run_writes_to_the_byte(packed: ShardSet, tmp_path: Path, more: dict[str, object]) -> None:
    config = with_values(preset("recommended", "pretrain"), {**TINY, **more})
    pretrain(config, packed, tmp_path / "run", Options(torch.device("cpu")))
    checkpoint = tmp_path / "run/checkpoints/epoch-000001.safetensors"
    assert plan_bytes.checkpoint_bytes(CLIPS, [4], config) == checkpoint.stat().st_size
    generation = tmp_path / "run/bank.zarr/gen-000001"
    rows = sum(path.stat().st_size for path in generation.rglob("c/**/*") if path.is_file())
    assert plan_bytes.bank_generation_bytes(CLIPS, config) == rows
    held = [
        sum(path.stat().st_size for path in cache.glob("*.npy"))
        for cache in open_shards(packed.directory).directory.glob("log-mel-train-*.cache")
    ]
    assert plan_bytes.log_mel_cache_bytes(CLIPS, SECONDS, config) in held


def test_a_step_costs_what_it_costs_on_real_tensors() -> None:
    """Beside the paper's encoder by hand: 137.2 million products a view (64 x 96), four of them, and its projector."""
    config = Config()
    cost = plan_bytes.step_cost(config, [512])
    encoder, projector, scores = 137.2e6, 2048 * 2048 + 2048 * 512, 512 * 512
    first_layer = 64 * 9 * 64 * 96  # its input needs no gradient
    by_hand = 2 * (4 * (encoder + projector) + 2 * scores - first_layer)
    assert cost.flops == pytest.approx(by_hand, rel=0.01)
    network, kept = PretrainNetwork(config), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = network(torch.randn(8, 1, 64, 96))
    weights = sum(parameter.nbytes for parameter in network.parameters() if parameter.ndim > 1)
    assert held.shape == (8, 512) and 8 * cost.kept_bytes == pytest.approx(sum(kept.values()) - weights, rel=0.05)


def test_the_network_and_what_trains_it() -> None:
    config = Config()
    network = PretrainNetwork(config)
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    assert plan_bytes.network_bytes(config) == 3 * parameters + buffers
    adam = with_values(config, {"optim.name": "adamw"})
    assert plan_bytes.network_bytes(adam) == 4 * parameters + buffers
