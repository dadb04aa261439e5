"""Options of stages 1 to 3 that the recipe names: each changes what it says; resumed runs go on exactly."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from method_kinds import sets
from outcomes import Cli
from safetensors.torch import load_file
from same_runs import assert_same_run, log_of
from stopping import stopped_twice
from torch import Tensor

from unfused_fast.clustering.assign import Clustering
from unfused_fast.config.audio import Store
from unfused_fast.config.fields import Config, DistillConfig
from unfused_fast.config.presets import with_values
from unfused_fast.data.crops import Where, Window, eval_window
from unfused_fast.data.stream import Loader
from unfused_fast.errors import UserError
from unfused_fast.methods.decar_v2 import Prototypes
from unfused_fast.models.audiontt import DistillNetwork
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.distillation import distill_loss, pseudo_labels
from unfused_fast.stages.features import baseline_encoder, eval_features, extract, load_encoder

CPU = torch.device("cpu")
SMALL = {"model.channels": 4, "model.dim": 16}


def newest(run: Path) -> dict[str, Tensor]:
    return load_file(sorted((run / "checkpoints").glob("*.safetensors"))[-1])


# prototypes.freeze


def clustering(vectors: Tensor) -> Clustering:
    return Clustering(torch.tensor([0]), torch.tensor([1, 0]), torch.tensor(0.0), vectors)


def test_prototypes_that_are_not_frozen_take_a_step_of_sgd() -> None:
    values = {"prototypes.freeze": "false", "model.proj_dim": 2, "loss.temperature": 1.0}
    config = with_values(Config(), {**values, "optim.head_lr": 0.5, "optim.head_weight_decay": 0.1})
    frozen = replace(config, prototypes=Config().prototypes)
    kinds = [Prototypes(of, CPU) for of in (frozen, config)]
    for predictor in kinds:
        predictor.remake(clustering(torch.eye(2)), 0)
        scores = predictor.scores(torch.tensor([[1.0, 0.0]], requires_grad=True))
        torch.nn.functional.cross_entropy(scores, torch.tensor([0])).backward()
        predictor.step()
    assert torch.equal(kinds[0].prototypes, torch.eye(2))
    # scores (1, 0): p = e / (1 + e); gradient of row 0: (p - 1) x, of row 1: (1 - p) x, with x = (1, 0); decay 0.1
    p = math.e / (1 + math.e)
    rows = np.array([[1 - 0.5 * (p - 1 + 0.1), 0], [-0.5 * (1 - p), 1 - 0.5 * 0.1]])
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(kinds[1].prototypes.detach().numpy(), expected, atol=1e-6)


# distill.mse = features, distill.init = teacher, distill.contrast


def test_features_are_compared_through_a_linear_map() -> None:
    config = with_values(Config(), {**SMALL, "distill.mse": "features"})
    network = DistillNetwork(config, 3).eval()
    log_mel = torch.randn(5, 1, 64, 96)
    deepest, blocks, pooled, adapted, projection = network(log_mel)
    assert projection is None
    output = network.encoder(log_mel)
    steps = output.frames.detach().numpy()
    np.testing.assert_allclose(pooled.detach().numpy(), steps.mean(axis=1) + steps.max(axis=1), atol=1e-5)
    squares = []
    for block, adapter, found in zip(output.blocks, network.adapters, adapted, strict=True):
        flat = block.detach().numpy().reshape(5, -1, block.shape[-1]).mean(axis=2)
        mapped = flat @ adapter.weight.detach().numpy().T + adapter.bias.detach().numpy()
        np.testing.assert_allclose(found.detach().numpy(), mapped, atol=1e-4)
        squares.append(((mapped - pooled.detach().numpy()) ** 2).mean())
    parts = distill_loss(deepest, blocks, torch.tensor([0, 1, 2, 0, 1]), config.distill, pooled, adapted)
    assert parts["mse_blocks"].item() == pytest.approx(sum(squares), rel=1e-4)
    plain = DistillNetwork(with_values(config, {"distill.mse": "logits"}), 3)
    assert len(plain(log_mel).adapted) == 0 and not any("adapter" in name for name in plain.state_dict())


@pytest.mark.parametrize("detach", [True, False])
def test_detach_teacher_stops_the_gradient_into_the_deepest_features(detach: bool) -> None:
    pooled, adapted = torch.randn(4, 6, requires_grad=True), (torch.randn(4, 6, requires_grad=True),)
    config = DistillConfig(mse="features", detach_teacher=detach)
    parts = distill_loss(torch.randn(4, 3), [torch.randn(4, 3)], torch.zeros(4).long(), config, pooled, adapted)
    parts["mse_blocks"].backward()  # type: ignore[no-untyped-call]
    assert (pooled.grad is None) is detach and adapted[0].grad is not None


# windows


PLACES: dict[Where, list[int]] = {"start": [1, 1, 1], "centre": [3, 2, 1]}
"""First values of the windows below."""


def test_windows_are_parts_of_the_clip_by_hand() -> None:
    ramp = torch.arange(1.0, 11.0).expand(3, 1, 2, 10)
    counts, ids = torch.tensor([10, 7, 3]), torch.tensor([5, 6, 7])
    ramp = ramp * (torch.arange(10) < counts[:, None])[:, None, None]
    seconds = 0.045  # 5 frames: 1 + 720 // 160
    for where, firsts in PLACES.items():
        found, taken = Window(seconds, where).cut(ramp, counts, ids, Config())
        assert taken.tolist() == [5, 5, 3] and found.shape == (3, 1, 2, 5)
        expected = [
            [first + t if t < count else 0 for t in range(5)] for first, count in zip(firsts, [5, 5, 3], strict=True)
        ]
        assert found[:, 0, 1].tolist() == expected
    starts = [
        int(Window(seconds, "random", seed, epoch).cut(ramp, counts, ids, Config())[0][0, 0, 0, 0])
        for seed in range(40)
        for epoch in (0, 1)
    ]
    assert set(starts) == {1, 2, 3, 4, 5, 6}, "anywhere it fits"
    assert starts[::2] != starts[1::2]


def test_an_evaluation_crop_has_the_length_of_the_task_or_of_training(tones: Path) -> None:
    shards, encoder = open_shards(tones), with_values(Config(), {"data.crop_seconds": 0.5})
    assert eval_window(Config(), encoder, shards) is None
    centre = with_values(Config(), {"eval.crop": "centre"})
    assert eval_window(centre, encoder, shards) == Window(0.5, "centre", 0)
    known = replace(shards, manifest=replace(shards.manifest, dataset={"name": "nsynth", "options": {}}))
    assert eval_window(centre, encoder, known) == Window(4.0, "centre", 0), "the authors' window of NSynth"
    given = with_values(Config(), {"eval.crop": "random", "eval.seconds": 0.7, "train.seed": 3})
    assert eval_window(given, encoder, known) == Window(0.7, "random", 3)


@pytest.mark.parametrize("store", ["stream", "resident"])
def test_features_of_a_crop_are_those_of_its_frames_alone(tones: Path, store: Store) -> None:
    shards, config = open_shards(tones), with_values(Config(), SMALL)
    logmel, encoder = (baseline_encoder(name, config, CPU) for name in ("logmel", "random"))
    window = Window(0.5, "centre")
    found = extract(logmel, shards, "test", "logmel", "mean", CPU, store=store, window=window)
    first, clips = shards.first_id("test"), 0
    for batch in Loader(shards, "test", config, device=CPU, batch_size=4).whole_clips():
        assert batch.frame_counts is not None
        for clip, log_mel, count in zip(batch.clip_ids, batch.views[0][:, 0], batch.frame_counts, strict=True):
            begin = (int(count) - 51) // 2  # 1 + 8000 // 160 frames
            frames = log_mel[:, begin : begin + 51].numpy()
            expected = np.concatenate([frames.mean(axis=1), frames.std(axis=1)])
            np.testing.assert_allclose(found[int(clip) - first].numpy(), expected, atol=2e-3)
            clips += 1
    assert clips == 18
    whole = extract(encoder, shards, "test", "encoder", "maxmean", CPU, store=store)
    longer = extract(encoder, shards, "test", "encoder", "maxmean", CPU, store=store, window=Window(9.0, "centre"))
    assert torch.equal(whole, longer)
    assert not torch.allclose(whole, extract(encoder, shards, "test", "encoder", "maxmean", CPU, window=window))


# eval.encoder_mode


def test_train_mode_moves_batchnorm_over_train_alone_and_leaves_the_encoder(tones: Path) -> None:
    shards = open_shards(tones)
    values = {"eval.encoder_mode": "train", "eval.crop": "centre", "eval.seconds": 0.9, "data.store": "stream"}
    config = with_values(Config(), {**SMALL, **values})
    encoder = baseline_encoder("random", config, CPU)
    assert encoder.network is not None
    before = {name: tensor.clone() for name, tensor in encoder.network.state_dict().items()}
    found = eval_features(encoder, config, shards, ("test", "train"), CPU)
    again = eval_features(encoder, config, shards, ("test", "train"), CPU)
    assert all(torch.equal(found[split], again[split]) for split in found), "the same by seed"
    after = encoder.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and not encoder.network.training
    frozen = eval_features(encoder, with_values(config, {"eval.encoder_mode": "eval"}), shards, ("test", "train"), CPU)
    assert all((found[split] - frozen[split]).abs().max() > 1e-3 for split in found)
    # by hand: one pass over train in train mode, then the test in eval mode
    own, window = copy.deepcopy(encoder.network).train(), Window(0.9, "centre")
    with torch.no_grad():
        for batch in Loader(shards, "train", config, device=CPU, batch_size=32).whole_clips():
            assert batch.frame_counts is not None
            own(*window.cut(batch.views[0], batch.frame_counts, batch.clip_ids, config))
    wanted = extract(replace(encoder, network=own.eval()), shards, "test", "encoder", "maxmean", CPU, window=window)
    torch.testing.assert_close(found["test"], wanted)


# pseudo-labels


def test_a_window_splits_and_refreshes_change_the_pseudo_labels(pretrained: Path, tones: Path) -> None:
    shards = open_shards(tones)
    base = with_values(Config(), {"pseudo.k": 5, "pseudo.pca_dim": 4, "pseudo.n_init": 1})

    def labels(epoch: int = 0, previous: Tensor | None = None, **values: Any) -> Tensor:
        config = with_values(base, {f"pseudo.{name}": value for name, value in values.items()})
        found = pseudo_labels(config, shards, pretrained, CPU, epoch, previous)
        assert len(found) == 60 and int(found.max()) < 5
        return found

    first = labels()
    assert torch.equal(first, labels(seconds=9.0)), "a window that holds every clip"
    assert not torch.equal(first, labels(seconds=0.1)), "a window of a part"
    assert not torch.equal(first, labels(splits="train,valid,test")), "other clips shape the clusters too"
    other, renamed = labels(3), labels(3, first)
    assert not torch.equal(other, first), "another random start"
    assert torch.equal(
        torch.bincount(other, minlength=5).sort().values, torch.bincount(renamed, minlength=5).sort().values
    )
    assert (renamed == first).sum() >= (other == first).sum()
    overlap = torch.zeros(5, 5).long()
    overlap.index_put_((renamed, first), torch.tensor(1), accumulate=True)
    best = int(overlap.max())
    assert best in overlap.diagonal().tolist(), "the two clusters that share most clips have one name"
    with pytest.raises(UserError, match="no split dev"):
        labels(splits="train,dev")


# whole runs


DISTILL = sets("pseudo.k=4 pseudo.pca_dim=4 pseudo.n_init=1")
REFRESHED = "pseudo.refresh_epochs=1 pseudo.seconds=0.5 pseudo.crop=random"
RUNS = {
    "prototypes trained, running norm": ("pretrain", "prototypes.freeze=false data.norm=running data.store=stream"),
    "time warp, unit norm, decar1, zeros": (
        "pretrain",
        "aug.specaug.warp=9 data.norm=wave_l2 frontend.kind=decar1 frontend.pad_mode=constant",
    ),
    "refreshed, running norm": ("distill", f"{REFRESHED} data.norm=running"),
    "features, contrast and mean of the teacher": (
        "distill",
        "distill.init=teacher distill.mse=features distill.contrast=1 distill.teacher_share=0.5",
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_stopped_within_epochs_ends_as_the_undisturbed_one(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path, kind: str
) -> None:
    stage, values = RUNS[kind]
    teacher = ["--teacher", pretrained, *DISTILL] if stage == "distill" else []

    def train(name: str, *more: object) -> Any:
        given = ["--out", tmp_path / name, "--epochs", 3, *tiny, *sets(values)]
        return cli("train", stage, tones, *teacher, *given, *more)

    whole = train("whole")
    assert whole.code == 0, whole.err
    stopped_twice(partial(train, "parts"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_refreshed_pseudo_labels_are_those_of_the_checkpoint_and_of_the_file(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, flags = tmp_path / "run", ["--teacher", pretrained, "--epochs", 2, *tiny, *DISTILL, *sets(REFRESHED)]
    assert cli("train", "distill", tones, "--out", run, *flags).code == 0
    rows = log_of(run)
    assert "relabelled" not in rows[0] and all(0 < row["relabelled"] < 1 for row in rows[1:])
    written = pq.read_table(run / "pseudo_labels.parquet").column("pseudo_label").to_numpy()
    np.testing.assert_array_equal(written, newest(run)["targets"].numpy())


def test_f_sd_begins_at_the_teachers_weights(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    flags = ["--teacher", pretrained, "--epochs", 1, *tiny, *DISTILL, "--set", "optim.lr=1e-9"]
    teacher = load_encoder(pretrained, CPU).network
    assert teacher is not None
    weight = "convolutions.1.0.weight"
    for init, same in (("teacher", True), ("random", False)):
        run = tmp_path / init
        assert cli("train", "distill", tones, "--out", run, *flags, "--set", f"distill.init={init}").code == 0
        found = newest(run)[f"model.encoder.{weight}"]
        assert torch.allclose(found, teacher.state_dict()[weight], atol=1e-5) is same
    others = ("model.dim", 32, 64), ("data.norm", "dataset", "wave_l2"), ("frontend.fmin_hz", 60.0, 0.0)
    for field, theirs, own in others:
        other = [*flags, "--set", "distill.init=teacher", "--set", f"{field}={own}"]
        refused = cli("train", "distill", tones, "--out", tmp_path / "no", *other)
        assert refused.code == 1 and f"does not match f_sd in {field}; give" in refused.error
        assert f"settings: --set {field}={theirs}; or" in refused.error
    early = cli("train", "all", tones, "--out", tmp_path / "all", "--method", "decar-v1", *tiny)
    assert early.code == 1 and "stage 1 does not match f_sd" in early.error and not (tmp_path / "all").exists()


@pytest.mark.parametrize("name", ["paper", "authors", "decar-v1"])
def test_a_preset_trains_from_end_to_end(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, name: str) -> None:
    small = "pseudo.pca_dim=4 eval.epochs=2 train.batch_size=30"
    if name == "decar-v1":
        small += " cluster.pca_dim=4 model.encoder=audiontt data.crop_seconds=0.95"
    run = ["--out", tmp_path / "runs", "--preset", name, "--epochs", 1, *tiny, *sets(small), "--json"]
    done = cli("train", "all", tones, *run)
    assert done.code == 0, done.err
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("result.json")]
    assert {result["stage"] for result in results} == {"pretrain", "distill", "linear"}
