"""What `plan` counts, bytes and operations, beside what a run writes, what a step keeps and what it costs by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from live_memory import Live

from unfused_fast.clustering import assign, pca, pic
from unfused_fast.clustering.assign import cluster_rows
from unfused_fast.commands.measure import estimate
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.kernels.assign import BLOCK_BYTES
from unfused_fast.mel import log_mel_statistics
from unfused_fast.models.audiontt import PretrainNetwork
from unfused_fast.models.cost import step_bytes
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.stages import pretrain
from unfused_fast.training import Options


def test_bytes_beside_what_a_run_writes(tmp_path: Path) -> None:
    """Two tars of 70 clips, one epoch; the bank's and the checkpoint's headers are a few kilobytes."""
    clips, seconds, generator = 70, 1.05, np.random.default_rng(0)
    (tmp_path / "source").mkdir()
    for number in range(clips):
        noise = generator.uniform(-0.5, 0.5, round(seconds * 16000)).astype("float32")
        soundfile.write(tmp_path / f"source/clip-of-some-name-{number:03d}.wav", noise, 16000)
    shards = pack(
        source_rows(tmp_path / "source"), tmp_path / "set", workers=0, statistics=log_mel_statistics
    ).shard_set
    values = {"model.channels": 16, "model.dim": 256, "model.proj_hidden": 256, "cluster.k": 8, "train.epochs": 1}
    config = with_values(preset("recommended", "pretrain"), {**values, "train.batch_size": 16, "train.amp": "fp32"})
    pretrain(config, shards, tmp_path / "run", Options(torch.device("cpu")))

    def size(folder: Path, pattern: str) -> int:
        return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())

    machine = estimate.Machine("cpu", 1e9, 1e9)
    disk = list(estimate.estimate(config, clips, seconds, machine, None)["disk"].items())
    assert disk[0][0] == f"shards, wav ({len(shards.shard_paths('train'))} tars)"
    assert disk[0][1] == pytest.approx(size(shards.directory, "*.tar") + size(shards.directory, "*.idx"), rel=0.01)
    assert disk[2][1] == pytest.approx(size(shards.directory, "log-mel-train-*.cache/*"), rel=0.01)
    assert disk[3][1] == pytest.approx(size(tmp_path / "run/checkpoints", "*.safetensors"), rel=0.02)
    assert disk[4][1] == pytest.approx(size(tmp_path / "run/bank.zarr/gen-000001", "**/*"), rel=0.1)
    held = pq.read_table(shards.directory / "clips.parquet").nbytes
    assert clips * estimate.TABLE_BYTES == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_a_step_is_within_what_auto_leaves(precision: str) -> None:
    """Allocations as the profiler counts them, of a forward and a backward pass."""
    config, clips = with_values(Config(), {"model.dim": 512, "model.proj_hidden": 64}), 32
    network = PretrainNetwork(config).train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            projected = network(torch.randn(clips, 1, 64, 96))
        projected.float().square().sum().backward()

    step()  # gradients are there
    with torch.profiler.profile(profile_memory=True) as seen:
        step()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    live = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    assert 0.4 * step_bytes(config, clips) < live.max() < step_bytes(config, clips)


def test_a_step_costs_what_it_costs_on_real_tensors() -> None:
    """Beside the paper's encoder by hand: 137.2 million products a view (64 x 96), four of them, and its projector."""
    config = Config()

    def cost(config: Config) -> tuple[int, int]:
        return estimate.step_cost(estimate.hollow(config, 1000))

    flops, kept_bytes = cost(config)
    encoder, projector, scores = 137.2e6, 2048 * 2048 + 2048 * 512, 512 * 512
    first_layer = 64 * 9 * 64 * 96  # its input needs no gradient
    assert flops == pytest.approx(2 * (4 * (encoder + projector) + 2 * scores - first_layer), rel=0.01)
    one_view = with_values(config, {"bank.view": "training"})
    assert cost(one_view)[0] == pytest.approx(2 * (3 * (encoder + projector) + 2 * scores - first_layer), rel=0.01)
    three = with_values(one_view, {"loss.instance": "simclr", "views.local": 1, "views.local_seconds": 0.47})
    parts = (encoder / 2 + projector, encoder + projector, encoder + projector)  # 48 frames, and 96 twice
    more = 2 * (3 * sum(parts) + 3 * 2 * scores - 2.5 * first_layer)
    assert cost(three)[0] == pytest.approx(more, rel=0.01)
    assert step_bytes(three, 3 * 8) == pytest.approx(2.5 * step_bytes(one_view, 8), rel=0.02)
    moco = with_values(preset("recommended", "pretrain", "moco"), {"model.projector": "batchnorm"})
    queries = 2 * (4 * (encoder + 2048 * 2048 + 2048 * 128) - first_layer + 2 * 500 * 128)  # keys without gradient
    assert cost(moco)[0] == pytest.approx(queries, rel=0.01)
    network, kept = PretrainNetwork(config), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(8, 1, 64, 96))
    weights = sum(parameter.nbytes for parameter in network.parameters() if parameter.ndim > 1)
    assert 8 * kept_bytes == pytest.approx(sum(kept.values()) - weights, rel=0.05)
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    adam = with_values(config, {"optim.name": "adamw"})
    for made, copies in ((config, 2), (adam, 3)):
        assert estimate.network_bytes(estimate.hollow(made, 1000)) == (copies * parameters + buffers, parameters)


@pytest.mark.parametrize(("algo", "iterations"), [("pca_kmeans", "iterations"), ("pic", "pic_iterations")])
def test_clusters_of_components_take_about_what_is_planned(
    algo: str, iterations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are small, as they are beside the rows of a large set."""
    for module, name, size in ((pca, "BLOCK_ROWS", 32), (assign, "BLOCK_ROWS", 32), (pic, "BLOCK_VALUES", 1 << 14)):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 1 << 14)
    sizes = {"model.proj_dim": 48, "cluster.pca_dim": 48, f"cluster.{iterations}": 2}
    config = with_values(preset("decar-v1", "pretrain"), {**sizes, "cluster.algo": algo})
    rows = torch.nn.functional.normalize(torch.randn(1500, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    with Live(rows) as seen:
        cluster_rows(rows, 8, config, seed=0)
    assert 0.65 < seen.peak / estimate.kmeans_bytes(1500, 1500, 8, config) < 1.25
