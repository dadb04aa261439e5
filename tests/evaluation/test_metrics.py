"""Metrics against scikit-learn and SciPy; intervals against the binomial law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, chi2
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from unfused_fast.evaluation.intervals import bootstrap_map, bootstrap_means, mcnemar, percentile_interval
from unfused_fast.evaluation.measure import neighbour_shares
from unfused_fast.stages.metrics import AveragePrecision


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_scikit_learns_with_ties_and_weights(levels: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((120, 7)) < [0.02, 0.1, 0.2, 0.3, 0.5, 0.8, 0.9]
    truth[0] = True
    scores = np.round((0.4 * truth + generator.random(truth.shape)) * levels) / levels
    weights = generator.integers(0, 4, 120).astype(np.float64)
    weights[0] = 1
    ours = AveragePrecision(truth, scores)
    assert ours.mean() == pytest.approx(average_precision_score(truth, scores, average="macro"))
    theirs = [average_precision_score(truth[:, c], scores[:, c], sample_weight=weights) for c in range(7)]
    np.testing.assert_allclose(ours.of_classes(weights), theirs)


def test_a_class_without_clips_is_no_part_of_the_mean() -> None:
    truth = np.array([[True, False], [False, False]])
    found = AveragePrecision(truth, np.array([[0.9, 0.1], [0.2, 0.3]]))
    assert found.mean() == 1.0 and math.isnan(found.of_classes(np.ones(2))[1])


def test_the_bootstrap_interval_of_an_accuracy_is_the_binomial_law() -> None:
    right = np.arange(400) < 300  # resampled accuracy is Binomial(400, 0.75) / 400
    draws = bootstrap_means(right.astype(np.float64), seed=3)
    low, high = percentile_interval(draws)
    expected = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert (low, high) == pytest.approx(tuple(expected), abs=0.008)
    assert draws.mean() == pytest.approx(0.75, abs=0.004)
    assert draws.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert np.array_equal(draws, bootstrap_means(right.astype(np.float64), seed=3))
    assert not np.array_equal(draws, bootstrap_means(right.astype(np.float64), seed=4))


def test_the_bootstrap_of_map_is_scikit_learns_under_weights_that_leave_no_class_out() -> None:
    """Of 60 classes half have one clip, which a draw of counts misses in 37 of 100 cases."""
    generator = np.random.default_rng(1)
    truth = np.zeros((200, 60), dtype=bool)
    truth[np.arange(60), np.arange(60)] = True
    truth[60:, :30] = generator.random((140, 30)) < 0.2
    scores = 0.5 * truth + generator.random(truth.shape)
    precision = AveragePrecision(truth, scores)
    draws = bootstrap_map([(np.arange(200), precision)], 200, seed=5)
    resampled = np.random.Generator(np.random.PCG64([5, 20]))
    for draw in draws[:20]:
        weights = resampled.dirichlet(np.ones(200))
        assert draw == pytest.approx(average_precision_score(truth, scores, sample_weight=weights))
    low, high = percentile_interval(draws)
    assert low < precision.mean() < high


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (8, 2), (0, 12), (20, 5), (20, 6), (40, 41), (300, 200)]
)
def test_mcnemar_is_the_exact_test_for_few_and_chi_squared_with_continuity_correction_for_many(
    only_first: int, only_second: int
) -> None:
    pairs = [(True, False)] * only_first + [(False, True)] * only_second + [(True, True)] * 9 + [(False, False)] * 5
    found, discordant = mcnemar(*np.array(pairs).T), only_first + only_second
    assert (found["only_first"], found["only_second"]) == (only_first, only_second)
    assert found["exact"] == (discordant <= 25)
    exact = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert found["p_value"] == pytest.approx(exact, abs=1e-9 if found["exact"] else 0.01)
    if not found["exact"]:
        statistic = (abs(only_first - only_second) - 1) ** 2 / discordant
        assert found["p_value"] == pytest.approx(chi2.sf(statistic, 1))


def test_neighbours_are_scikit_learns() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 5, 300)
    train = generator.standard_normal((300, 8)) + 1.5 * np.eye(8)[labels]
    queries = generator.standard_normal((1500, 8))
    for k in (1, 4, 15):
        theirs = KNeighborsClassifier(k, weights="distance", metric="cosine", algorithm="brute").fit(train, labels)
        shares = neighbour_shares(*map(torch.from_numpy, (train, labels, queries)), k, 5).numpy()
        np.testing.assert_allclose(shares, theirs.predict_proba(queries), atol=1e-6)
        assert np.array_equal(shares.argmax(axis=1), theirs.predict(queries))


def test_neighbours_of_several_labels_vote_for_each() -> None:
    # cosines with (1, 0): 0.6, 0.8 and 0; distances 0.4, 0.2 and 1; weights 2.5, 5 and 1
    train = torch.tensor([[3.0, 4.0], [0.8, 0.6], [0.0, 1.0]])
    truth = torch.tensor([[True, True], [True, False], [False, True]])
    query = torch.tensor([[7.0, 0.0]])
    assert neighbour_shares(train, truth, query, 2, 2).tolist() == [pytest.approx([1.0, 2.5 / 7.5])]
    assert neighbour_shares(train, truth, query, 99, 2).tolist() == [pytest.approx([7.5 / 8.5, 3.5 / 8.5])]
    assert neighbour_shares(train, truth, train[:1], 3, 2).tolist() == [pytest.approx([1.0, 1.0])], "itself alone"
