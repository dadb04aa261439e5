"""The interface holds a method of another kind than DECAR: no bank, but a moving average and a queue."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from same_runs import assert_same_run, log_of
from stopping import stopped_twice
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unfused_fast.methods import registry
from unfused_fast.methods.method import Log, Method
from unfused_fast.stages.features import load_encoder


class Contrast(Method):
    """Each clip's two views agree, against a queue of other clips, by a network that follows the one that learns."""

    title, views = "contrast", 2
    queue: Tensor

    @classmethod
    def build(cls, config: Any) -> nn.Module:
        network = super().build(config)
        network.add_module("predictor", nn.Linear(config.model.proj_dim, config.model.proj_dim))
        return network

    def __init__(self, config: Any, *given: Any) -> None:
        super().__init__(config, *given)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("queue", normalize(torch.randn(32, config.model.proj_dim), dim=1))
        self._keys: list[Tensor] = []

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        queries = self.network.get_submodule("predictor")(self.run(views[0]))
        with torch.no_grad():
            keys = self.run(views[1], network=self.teacher)
        self._keys.append(keys)
        scores = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ self.queue.T], dim=1)
        return cross_entropy(scores / 0.2, torch.zeros_like(clip_ids))

    @torch.no_grad()
    def after_step(self, clip_ids: Tensor) -> None:
        for own, learned in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            own.lerp_(learned, 0.1)
        self.queue.copy_(torch.cat([*self._keys, self.queue])[: len(self.queue)])
        self._keys = []

    def end_epoch(self) -> Log:
        return {"spread": round(float(self.queue.std(dim=0).mean()), 6)}

    def summary(self, log: Log) -> str:
        return f"  spread {log['spread']:.3f}"


def test_a_method_without_a_bank_trains_and_resumes_bit_for_bit(
    cli: Any, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.METHODS, "decar-v2", Contrast)
    flags = ["--epochs", 3, *tiny, "--set", "train.accumulate=2", "--set", "optim.lr=0.1"]
    train = partial(cli, "train", "pretrain", tones, *flags)
    whole = train("--out", tmp_path / "whole")
    assert whole.code == 0 and "spread" in whole.err and "; contrast" in whole.err, whole.err
    stopped_twice(lambda *more: train("--out", tmp_path / "parts", *more))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert all(0 < row["spread"] < 1 for row in log_of(tmp_path / "whole"))
    assert not (tmp_path / "whole" / "bank.zarr").exists() and not (tmp_path / "whole" / "clusters.png").exists()
    saved = load_file(tmp_path / "whole/checkpoints/epoch-000003.safetensors")
    one, other = (saved[f"{name}.encoder.convolutions.0.0.weight"] for name in ("model", "teacher"))
    assert not torch.equal(one, other) and saved["queue"].shape == (32, 16)
    linear = cli(
        "train", "linear", tones, "--encoder", tmp_path / "whole", "--out", tmp_path / "linear", "--json", *tiny
    )
    assert json.loads(linear.out)["features"] == 32
    loaded = load_encoder(tmp_path / "whole", torch.device("cpu"))
    assert loaded.network is not None and loaded.projector is not None
    assert torch.equal(loaded.network.state_dict()["convolutions.0.0.weight"], one)
