"""Several heads on one bank, `cluster.k` as a list; and whose projections become the bank's rows."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import Cli, refused
from safetensors.torch import load_file
from same_runs import assert_same_run
from stopping import stopped_twice
from torch import Tensor

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.distributed import ALONE
from unfused_fast.methods import method_class
from unfused_fast.methods.deep_clustering import DeepClustering
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run

CPU = torch.device("cpu")


def method_on(rows: Tensor, config: Config) -> DeepClustering:
    """Clustered once."""
    method = method_class(config)(config, len(rows), 0, CPU, ALONE)
    assert isinstance(method, DeepClustering)
    method.bank.write(torch.arange(len(rows)), rows)
    method._cluster(1)
    return method


@pytest.mark.parametrize("heads", ["2", "2,3,3"])
def test_the_loss_is_the_mean_over_heads_by_hand(heads: str) -> None:
    config = with_values(Config(), {"cluster.k": heads, "model.proj_dim": 4, "loss.temperature": 0.5})
    assert config.cluster.heads == tuple(map(int, heads.split(",")))
    rows = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    method = method_on(rows, config)
    ids = [head.assignments for head in method.heads]
    assert [int(of.max()) + 1 for of in ids] == list(config.cluster.heads)
    assert len(ids) == 1 or not torch.equal(*ids[1:]), "each head starts from rows of its own"
    taken, projections, losses = torch.tensor([4, 9, 31]), rows[[1, 2, 3]], []
    for head, of in zip(method.heads, ids, strict=True):
        scores = projections.numpy() @ head.prototypes.detach().numpy().T / 0.5
        chosen = scores[np.arange(3), of[taken].numpy()]
        losses.append(float(np.mean(np.log(np.exp(scores).sum(axis=1)) - chosen)))
    method.run = lambda view: projections
    assert method.loss((taken, taken), taken).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "views", "forwards"),
    [
        ({"bank.view": "separate"}, 2, 2),
        ({"bank.view": "training"}, 1, 1),
        ({"bank.view": "training", "train.accumulate": "2"}, 1, 2),
        ({"bank.view": "training", "loss.instance": "simclr"}, 2, 2),
        ({"bank.view": "separate", "loss.instance": "barlow"}, 3, 3),
        ({"bank.view": "training", "views.local": "2"}, 3, 3),
        ({"bank.view": "training", "bank.encoder": "follower", "method.ema": "0.7"}, 1, 2),
        ({"bank.view": "separate", "bank.encoder": "follower", "loss.instance": "simclr"}, 3, 3),
        ({"bank.view": "separate", "loss.instance": "simclr", "views.local": "2"}, 5, 5),
        ({"bank.view": "training", "bank.fill": "pass"}, 1, 1),
    ],
)
def test_rows_are_the_projections_of_the_first_view_by_the_network_before_the_step(
    tones: Path, tiny: list[str], tmp_path: Path, values: dict[str, str], views: int, forwards: int
) -> None:
    """Which with `bank.view` = training is one that gives the loss: there is no other forward pass, but that of a
    follower, which moves by its average alone.
    """
    given = {**dict(word.split("=") for word in tiny if "=" in word), "model.dropout": "0", **values}
    config, shards, options = with_values(preset("recommended", "pretrain"), given), open_shards(tones), Options(CPU)
    method, trainer = pretrainer(config, shards, options, Run(tmp_path / "run", "pretrain", config, shards, options))
    assert isinstance(method, DeepClustering)
    trainer.begin_epoch(1)
    rows, run, loss = method.bank.rows.clone(), method.run, method.loss
    ran = list[Tensor]()

    def noted(given: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        assert len(given) == views
        if method.filled_by_training:
            rows[clip_ids - method.bank.first_id] = copy.deepcopy(method.follower or method.network)(given[0]).detach()
        return loss(given, clip_ids)

    method.run = lambda view, **given: (ran.append(view), run(view, **given))[1]
    method.loss = noted  # type: ignore[method-assign]
    for batch in list(trainer.batches(1))[:2]:
        before, ran[:] = method.bank.rows.clone(), []
        followed = [one.clone() for one in method.follower.parameters()] if method.follower else []
        trainer.train_batch(batch)
        assert len(ran) == forwards
        for own, was, one in zip(
            method.follower.parameters() if method.follower else (), followed, method.network.parameters(), strict=False
        ):
            torch.testing.assert_close(own, was.lerp(one.detach(), 1 - config.method.ema))
        torch.testing.assert_close(method.bank.rows, rows, atol=1e-6, rtol=0)
        assert torch.equal(method.bank.rows, before) is not method.filled_by_training
    assert int(method.bank.writes.sum()) == (32 if method.filled_by_training else 0)


def test_a_run_of_three_heads_learns_and_goes_on_exactly(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    def train(name: str, *more: object) -> Any:
        given = ["--out", tmp_path / name, "--epochs", 3, *tiny, "--set", "cluster.k=4,3,5", *more]
        return cli("train", "pretrain", tones, *given)

    whole = train("whole")
    assert whole.code == 0, whole.err
    stopped_twice(partial(train, "parts"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("*.safetensors"))[-1]
    tensors = load_file(newest)
    assert [len(tensors[f"heads.{head}.prototypes"]) for head in range(3)] == [4, 3, 5]
    assert tensors["heads.2.assignments"].shape == (60,)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses)
    done = cli("train", "pretrain", tones, "--out", tmp_path / "no", *tiny, "--set", "cluster.k=[4,61]")
    refused(done, "cluster.k = 61, but the train split has 60 clips")
