"""DECAR-v1: the documented values, its head and bank, early stop, later stages."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from unfused_fast.config.presets import from_flat, preset, with_values
from unfused_fast.data.stream import Loader
from unfused_fast.methods import deep_clustering
from unfused_fast.methods.decar_v1 import PredictionHead
from unfused_fast.models.audiontt import PretrainNetwork, build_encoder
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow

CHEAP = ["--set", "model.encoder=audiontt", "--set", "data.crop_seconds=0.95", "--set", "cluster.pca_dim=8"]
"""Flags that make the preset's run on one-second clips a matter of seconds."""


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_projector_has_the_published_size_and_the_encoder_the_papers_pooling() -> None:
    config = preset("decar-v1", "pretrain")
    torch.manual_seed(0)
    network = PretrainNetwork(config).eval()
    assert sum(parameter.numel() for parameter in network.projector.parameters()) == 918_528
    log_mel = torch.randn(2, 1, 64, 96)
    maps: list[torch.Tensor] = []
    network.encoder.head.register_forward_hook(lambda _module, _inputs, output: maps.append(output[0]))
    with torch.no_grad():
        found = network(log_mel)
        pooled = torch.nn.functional.silu(maps[0]).amax(dim=(2, 3))  # one maximum over frequency and time
        torch.testing.assert_close(found, network.projector(pooled))
    assert (found < 0).any(), "clustered before the last ReLU"
    assert build_encoder(with_values(config, {"model.pool": "mean"})).frequency_pool == "mean"


def test_the_head_is_new_by_seed_and_learns_by_plain_sgd() -> None:
    from unfused_fast.clustering.assign import Clustering

    config, cpu = preset("decar-v1", "pretrain"), torch.device("cpu")
    ids = torch.arange(400)
    clustering = Clustering(ids, torch.ones(400, dtype=torch.int64), torch.tensor(0.0), None)
    heads = [PredictionHead(config, cpu) for _ in range(3)]
    for head, seed in zip(heads, (1, 1, 2), strict=True):
        head.remake(clustering, seed)
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[0].weight, heads[2].weight)
    assert heads[0].weight.shape == (400, 512) and not heads[0].bias.any()
    assert heads[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    before, projections = heads[0].weight.detach().clone(), torch.randn(8, 512)
    for _ in range(2):  # a second step shows that nothing of the first is kept
        weight = heads[0].weight.detach().clone().requires_grad_()
        bias = heads[0].bias.detach().clone()
        torch.nn.functional.cross_entropy(projections.clamp(min=0) @ weight.T + bias, ids[:8]).backward()
        torch.nn.functional.cross_entropy(heads[0].scores(projections), ids[:8]).backward()
        heads[0].step()
        torch.testing.assert_close(heads[0].weight, weight - 0.05 * (weight.grad + 1e-5 * weight))
    assert not torch.equal(before, heads[0].weight)


def test_the_bank_holds_clean_features_of_the_network_and_the_epoch_is_drawn_from_its_clusters(
    cli, unlabelled: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, np.ndarray | None] = {}
    original = Loader.epoch

    def noted(self: Loader, epoch: int, views: int = 2, **given):
        drawn[epoch] = given.get("clusters")
        return original(self, epoch, views, **given)

    monkeypatch.setattr(Loader, "epoch", noted)
    flags = ["--preset", "decar-v1", "--epochs", 1, "--data", "stream", *tiny, *CHEAP]
    assert cli("train", "pretrain", unlabelled, "--out", tmp_path / "run", *flags).code == 0
    monkeypatch.undo()
    bank = zarr.open_group(tmp_path / "run" / "bank.zarr" / "gen-000001", mode="r")
    assert drawn[0] is None and np.array_equal(drawn[1], bank["assignments"][:])
    config = from_flat(json.loads((tmp_path / "run" / "config.json").read_text())["config"])
    torch.manual_seed(config.train.seed)
    network, shards = PretrainNetwork(config).eval(), open_shards(unlabelled)
    loader = Loader(shards, "train", config, device=torch.device("cpu"), batch_size=20)
    for batch in loader.epoch(0, views=1, masks=False):
        with torch.no_grad():
            expected = network(batch.views[0]).numpy()
        np.testing.assert_allclose(bank["embeddings"][:][batch.clip_ids.numpy()], expected, atol=1e-5)


def test_the_network_learns_clusters_that_stay(cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    values = "cluster.algo=pca_kmeans cluster.every_epochs=99 aug.specaug.freq_masks=0 aug.specaug.time_masks=0 "
    values += "model.proj_dropout=0 model.dropout=0 optim.name=adamw optim.lr=0.01 optim.head_lr=1"
    flags = [*tiny, *CHEAP, *(word for value in values.split() for word in ("--set", value)), "--preset", "decar-v1"]
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *flags, "--epochs", 10)
    assert done.code == 0, done.err
    losses = [row["loss"] for row in log(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(4), abs=0.1) and losses[-1] < 0.6 * losses[0]


def test_training_stops_when_the_clusterings_agree_no_better(
    cli, unlabelled: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nmis = iter([0.4, 0.6, 0.5, 0.55, 0.9, 0.9])
    monkeypatch.setattr(deep_clustering, "normalised_mutual_information", lambda *_: next(nmis))
    run = tmp_path / "run"
    flags = [*tiny, *CHEAP, "--set", "cluster.algo=pca_kmeans", "--preset", "decar-v1", "--epochs", 7, "--json"]
    train = partial(cli, "train", "pretrain", unlabelled, "--out", run, *flags, "--set", "train.patience=2")
    done = train("--save-every", "50epochs")
    assert done.code == 0, done.err
    assert [row["nmi"] for row in log(run)] == [None, 0.4, 0.6, 0.5, 0.55]
    assert json.loads(done.out)["last_epoch"] == 5 and "stopped after epoch 5 of 7" in done.err
    assert [path.name for path in (run / "checkpoints").glob("*.json")] == ["epoch-000005.json"]
    (run / "result.json").unlink()  # as if killed before it was written: there is nothing left to train
    again = train("--save-every", "50epochs", "--resume")
    assert again.code == 0 and json.loads(again.out)["last_epoch"] == 5 and len(log(run)) == 5


def test_a_run_of_efficientnet_serves_the_later_stages(
    cli, tone_rows: list[SourceRow], pack_rows, tiny: list[str], tmp_path: Path
) -> None:
    """On a few clips and short crops: it has one size."""
    rows = [row for number, row in enumerate(tone_rows) if row.split == "test" or number < 12]
    shards, run = pack_rows(rows, tmp_path / "set"), tmp_path / "run"
    flags = ["--preset", "decar-v1", *tiny, "--set", "train.batch_size=6", "--json"]
    short = ["--set", "data.crop_seconds=0.2", "--epochs", 1]
    done = cli("train", "pretrain", shards, "--out", run, *flags, *short, "--set", "cluster.algo=pca_kmeans")
    assert done.code == 0 and math.isfinite(json.loads(done.out)["loss"]), done.err
    done = cli("train", "linear", shards, "--encoder", run, "--out", tmp_path / "linear", "--device", "cpu", "--json")
    assert done.code == 0 and json.loads(done.out)["features"] == 1280, done.err
    projected = ["--set", "pseudo.feature=projector", "--set", "pseudo.k=2", "--set", "pseudo.pca_dim=4"]
    done = cli("train", "distill", shards, "--teacher", run, "--out", tmp_path / "distill", *flags, *short, *projected)
    assert done.code == 0 and math.isfinite(json.loads(done.out)["loss"]), done.err
