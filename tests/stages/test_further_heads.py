"""Several heads on one bank: `cluster.k` as a list."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from same_runs import assert_same_run
from stopping import stopped_twice
from torch import Tensor

from unfused_fast.clustering.assign import Clustering, cluster_rows
from unfused_fast.commands import plan_bytes
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import flatten, from_flat, with_values
from unfused_fast.errors import UserError
from unfused_fast.stages.further_heads import FurtherHeads

CPU = torch.device("cpu")
Cli = Callable[..., Any]


def heads_on(rows: Tensor, config: Config) -> FurtherHeads:
    heads = FurtherHeads(config, CPU)

    def cluster(k: int, seed: int, start: Tensor | None, previous: Tensor | None) -> Clustering:
        return cluster_rows(rows, k, config, seed, start, previous)

    heads.cluster(cluster, 0, 1)
    return heads


def test_the_loss_is_the_mean_over_heads_by_hand() -> None:
    config = with_values(Config(), {"cluster.k": "2,3,3", "model.proj_dim": 4, "loss.temperature": 0.5})
    assert config.cluster.heads == (2, 3, 3)
    rows = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    heads = heads_on(rows, config)
    assert [int(ids.max()) + 1 for ids in heads.assignments] == [3, 3]
    assert not torch.equal(*heads.assignments), "each head starts from rows of its own"
    taken, projections = torch.tensor([4, 9, 31]), rows[[1, 2, 3]]
    losses = [7.0]
    for predictor, ids in zip(heads.predictors, heads.assignments, strict=True):
        scores = projections.numpy() @ predictor.tensors()["prototypes"].numpy().T / 0.5
        chosen = scores[np.arange(3), ids[taken].numpy()]
        losses.append(float(np.mean(np.log(np.exp(scores).sum(axis=1)) - chosen)))
    assert heads.mean_loss(torch.tensor(7.0), projections, taken).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_one_head_is_none_besides_the_first() -> None:
    heads, loss = FurtherHeads(Config(), CPU), torch.tensor(1.5)
    assert heads.mean_loss(loss, torch.randn(2, 512), torch.tensor([0, 1])) is loss and not heads.tensors()


@pytest.mark.parametrize("values", [{}, {"model.prediction": "linear"}])
def test_state_round_trip(values: dict[str, str]) -> None:
    config = with_values(Config(), {"cluster.k": "2,3", "model.proj_dim": 4, **values})
    heads = heads_on(torch.nn.functional.normalize(torch.randn(20, 4), dim=1), config)
    other = FurtherHeads(config, CPU)
    other.load(heads.tensors())
    projections, rows = torch.randn(5, 4), torch.arange(5)
    losses = [each.mean_loss(torch.tensor(0.0), projections, rows) for each in (heads, other)]
    assert torch.equal(*losses)
    with pytest.raises(UserError, match="missing"):
        other.load({})


def test_lists_are_read_and_written() -> None:
    config = with_values(Config(), {"cluster.k": "[512, 1024]"})
    assert config.cluster.k == (512, 1024)
    assert from_flat(json.loads(json.dumps(flatten(config)))) == config
    for value, says in (("512,0", "at least 1"), ("", "at least 1"), ("4,x", "whole number or auto or numbers")):
        with pytest.raises(UserError, match=says):
            with_values(Config(), {"cluster.k": value})
    with pytest.raises(UserError, match="pic finds the number of clusters itself"):
        with_values(Config(), {"cluster.k": "2,3", "cluster.algo": "pic", "model.prediction": "linear"})


def test_a_run_of_three_heads_learns_goes_on_exactly_and_is_planned(
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
    assert [len(tensors[f"{head}prototypes"]) for head in ("", "head2.", "head3.")] == [4, 3, 5]
    assert tensors["head3.assignments"].shape == (60,)
    config = from_flat(json.loads((tmp_path / "whole" / "config.json").read_text())["config"])
    assert plan_bytes.checkpoint_bytes(60, [4, 3, 5], config) == newest.stat().st_size
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses)
    refused = cli("train", "pretrain", tones, "--out", tmp_path / "no", *tiny, "--set", "cluster.k=4,61")
    assert refused.code == 1 and "cluster.k = 61, but the train split has 60 clips" in refused.error
