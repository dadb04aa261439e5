"""Linear evaluation: heads side by side equal heads alone, and scores equal scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.linear_heads import round_features, train_heads
from unfused_fast.stages.protocol import split_round


def blobs(count: int, dim: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + 1.5 * torch.randn(count, dim, generator=generator), labels


def test_each_head_is_torch_nn_linear_under_adam_whatever_heads_are_beside_it() -> None:
    (features, labels), rates = blobs(64), (0.001, 0.01, 0.1)
    config = with_values(Config(), {"eval.epochs": 2, "eval.batch_size": 16})
    for rate, found in zip(rates, train_heads(features, labels, 4, rates, config), strict=True):
        head = torch.nn.Linear(12, 4)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.Adam(head.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(config.train.seed)
        for _ in range(2):
            for rows in torch.randperm(64, generator=generator).split(16):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(head(features[rows]), labels[rows]).backward()
                optimizer.step()
        torch.testing.assert_close(found[:-1], head.weight.T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[-1], head.bias, atol=1e-5, rtol=1e-4)


def test_features_are_scaled_as_scikit_learn_does_by_the_clips_of_train(tones: Path) -> None:
    """One of them is constant."""
    clips, part = split_round(Config(), open_shards(tones), None)
    features = torch.randn(len(clips.targets), 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    features[:, 2] = 5
    found, scaler = round_features(Config(), clips, part, features), StandardScaler().fit(features[part.train])
    for name in ("train", "valid", "test"):
        wanted = scaler.transform(features[getattr(part, name)])
        np.testing.assert_allclose(found[name], wanted, atol=1e-5, err_msg=name)


def test_a_trained_head_is_as_good_as_scikit_learns_logistic_regression() -> None:
    train, (features, labels) = blobs(400), blobs(400, seed=1)
    (head,) = train_heads(*train, 4, (0.01,), Config())
    ours = np.mean(((features @ head[:-1] + head[-1]).argmax(dim=1) == labels).numpy())
    theirs = LogisticRegression(max_iter=500).fit(*train).score(features, labels)
    assert ours > 0.6 and ours == pytest.approx(theirs, abs=0.04)
