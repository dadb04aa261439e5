"""Linear evaluation: heads side by side equal heads alone, scores equal scikit-learn's, splits are made honestly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.stages.linear_heads import Split, score, train_heads


def blobs(count: int, dim: int = 12, classes: int = 4, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return Split(centres[labels] + 1.5 * torch.randn(count, dim, generator=generator), labels)


def test_heads_side_by_side_are_heads_alone() -> None:
    train, config = blobs(150), with_values(Config(), {"eval.epochs": 3})
    rates = (0.001, 0.01, 0.1)
    weights, biases = train_heads(train, 4, rates, config)
    for number, rate in enumerate(rates):
        weight, bias = train_heads(train, 4, (rate,), config)
        torch.testing.assert_close(weights[number], weight[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(biases[number], bias[0], atol=1e-5, rtol=1e-4)


def test_one_head_is_torch_nn_linear_under_adam() -> None:
    train, config = blobs(64), with_values(Config(), {"eval.epochs": 2, "eval.batch_size": 16})
    weights, biases = train_heads(train, 4, (0.01,), config)
    head = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(config.train.seed)
    for _ in range(2):
        for rows in torch.randperm(64, generator=generator).split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(train.features[rows]), train.labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(weights[0], head.weight.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(biases[0], head.bias, atol=1e-5, rtol=1e-4)


def test_a_trained_head_is_as_good_as_scikit_learns_logistic_regression() -> None:
    train, test = blobs(400), blobs(400, seed=1)
    weights, biases = train_heads(train, 4, (0.01,), Config())
    ours = score(test.labels, (test.features @ weights[0] + biases[0]).argmax(dim=1), 4).metric
    theirs = LogisticRegression(max_iter=500).fit(train.features, train.labels).score(test.features, test.labels)
    assert ours > 0.6 and abs(ours - theirs) < 0.04


def test_scores_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 5, 200), generator.integers(0, 6, 200)  # one class is predicted only
    found = score(torch.from_numpy(labels), torch.from_numpy(predictions), 6)
    assert found.metric == pytest.approx(accuracy_score(labels, predictions), abs=1e-6)
    assert found.macro_f1 == pytest.approx(
        f1_score(labels, predictions, labels=np.unique(labels), average="macro"), abs=1e-6
    )
    assert found.confusion == confusion_matrix(labels, predictions, labels=range(6)).tolist()
