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
from outcomes import refused
from safetensors.torch import load_file
from same_runs import assert_same_run
from stopping import stopped_twice
from torch import Tensor

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.distributed import ALONE
from unfused_fast.methods import method_class
from unfused_fast.methods.deep_clustering import DeepClustering

CPU = torch.device("cpu")
Cli = Callable[..., Any]


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
