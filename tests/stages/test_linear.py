"""Linear evaluation: heads side by side equal heads alone, scores equal scikit-learn's, splits are made honestly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.errors import UserError
from unfused_fast.stages.hold_out import hold_out_groups, label_subset, units_to_hold_out
from unfused_fast.stages.linear_heads import Split, train_heads


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
    predictions = (test.features @ weights[0] + biases[0]).argmax(dim=1)
    ours = float((predictions == test.labels).float().mean())
    theirs = LogisticRegression(max_iter=500).fit(train.features, train.labels).score(test.features, test.labels)
    assert ours > 0.6 and abs(ours - theirs) < 0.04


def test_label_subset_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 3])
    rows = label_subset(labels, 0.1, seed=1)
    assert np.bincount(labels[rows]).tolist() == [10, 3, 1]
    assert len(set(rows.tolist())) == 14
    assert np.array_equal(rows, label_subset(labels, 0.1, seed=1)) and not np.array_equal(
        rows, label_subset(labels, 0.1, seed=2)
    )
    assert np.array_equal(label_subset(labels, 1.0, seed=1), np.arange(133))


def test_held_out_groups_are_whole_and_near_the_fraction() -> None:
    groups, labels = [f"speaker{number % 20}" for number in range(400)], np.arange(400) % 3
    held = hold_out_groups(groups, labels, 0.15, seed=0)
    inside = {group for group, out in zip(groups, held, strict=True) if out}
    assert held.mean() == pytest.approx(0.15, abs=0.05)
    assert all(out == (group in inside) for group, out in zip(groups, held, strict=True))
    assert np.array_equal(held, hold_out_groups(groups, labels, 0.15, seed=0))


def test_holding_out_never_takes_the_last_clips_of_a_class() -> None:
    groups, labels = ["a", "b", "c", "c", "d"], np.array([0, 0, 1, 1, 0])
    for seed in range(10):
        held = hold_out_groups(groups, labels, 0.9, seed)
        assert held.any() and set(labels[~held]) == {0, 1} and not held[2:4].any()
    with pytest.raises(UserError, match="no group"):
        hold_out_groups(["a", "b"], np.array([0, 1]), 0.2, seed=0)


def test_clips_are_held_out_where_every_class_is_one_group() -> None:
    chapters, labels = ["a"] * 10 + ["b"] * 10, np.repeat([0, 1], 10)
    held = hold_out_groups(units_to_hold_out(chapters, labels), labels, 0.2, seed=0)
    assert held.sum() == 4 and set(labels[~held]) == {0, 1}
    speakers = ["a", "b"] * 10
    assert units_to_hold_out(speakers, labels) == speakers
