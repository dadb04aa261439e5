"""How good predictions are, and how sure that is.   N test clips, C classes, R resamples.

Accuracy and mean average precision; percentile bootstrap over test clips; McNemar's test and the paired bootstrap of
two encoders on the same clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
"""Of clips, for an interval. Ours: the ends of a 95 % interval then rest on 25 resamples each."""
LEVEL = 0.95
EXACT_UP_TO = 25
"""Discordant clips up to which McNemar's test is the exact binomial one. Source: the usual rule for its chi-squared
approximation, as in Edwards, Psychometrika 1948, whose continuity correction is used above it.
"""


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same clips."""

    only_first: int
    """Clips that the first alone has right."""
    only_second: int
    p_value: float
    """Two-sided, of the hypothesis that both are right equally often."""
    exact: bool


def accuracy(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """Share of the clips (N,) whose prediction is their label."""
    return float((labels == predictions).mean())


def unweighted_recall(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """UAR: the mean over the classes that occur in labels (N,) of the share of their clips that is recognised. Source:
    usual for emotions, whose classes differ in size.
    """
    counts = np.bincount(labels)
    hits = np.bincount(labels[labels == predictions], minlength=len(counts))
    return float((hits[counts > 0] / counts[counts > 0]).mean())


class AveragePrecision:
    """Average precision of each class under any weights of the clips; clips are sorted by score once.

    Area under the precision-recall steps, without interpolation; equal scores are one step.
    Source: scikit-learn's average_precision_score.
    """

    def __init__(self, truth: NDArray[np.bool_], scores: NDArray[Any]) -> None:
        """(N, C) which classes a clip has, (N, C) larger where a class is likelier."""
        self._truth = truth
        self._order = np.argsort(-scores, axis=0, kind="stable")
        ordered = np.take_along_axis(scores, self._order, axis=0)
        last = np.ones((1, scores.shape[1]), dtype=bool)
        self._ends = np.concatenate([ordered[1:] != ordered[:-1], last])

    def of_classes(self, weights: Floats) -> Floats:
        """Weights (N,) of the clips -> (C,), NaN where no clip of weight has the class."""
        found = np.full(self._truth.shape[1], np.nan)
        for number in range(len(found)):
            order, ends = self._order[:, number], self._ends[:, number]
            weight = weights[order]
            hits = np.cumsum(weight * self._truth[order, number])[ends]
            if hits[-1] > 0:
                precision = hits / np.maximum(np.cumsum(weight)[ends], np.finfo(float).tiny)
                found[number] = float((np.diff(hits, prepend=0.0) * precision).sum() / hits[-1])
        return found

    def mean(self, weights: Floats | None = None) -> float:
        """mAP: the mean over the classes that a clip of weight has."""
        values = self.of_classes(np.ones(len(self._truth)) if weights is None else weights)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def resamples(clips: int, seed: int, count: int = RESAMPLES) -> Iterator[NDArray[np.int64]]:
    """`count` draws of `clips` rows with replacement, (N,) each: how often each row was drawn. The same seed gives the
    same draws, so that two encoders are compared on the same ones.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 20]))
    for _ in range(count):
        yield np.bincount(generator.integers(0, clips, clips), minlength=clips)


def bootstrap_means(values: Floats, seed: int) -> Floats:
    """Mean of `values` (N,) or (N, M) over the clips in each resample, (R,) or (R, M). For 0 and 1, wrong and right,
    these are accuracies.
    """
    return np.array([counts @ values / len(values) for counts in resamples(len(values), seed)])


def bootstrap_map(rounds: Sequence[tuple[NDArray[np.int64], AveragePrecision]], clips: int, seed: int) -> Floats:
    """(rows among the clips, precision) of each round -> mAP under each draw of weights, mean over rounds, (R,).

    The Bayesian bootstrap (Rubin, Annals of Statistics 1981): weights are uniform over all that sum to 1, where those
    of the usual one are counts. Ours: a count of 0 for all clips of a rare class would leave it out of the mean.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 20]))
    weights = (generator.dirichlet(np.ones(clips)) for _ in range(RESAMPLES))
    return np.array([np.mean([precision.mean(weight[rows]) for rows, precision in rounds]) for weight in weights])


def percentile_interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the resampled values (R,): lower and upper end."""
    outside = (1 - level) / 2
    low, high = np.quantile(draws[np.isfinite(draws)], [outside, 1 - outside])
    return float(low), float(high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Which clips (N,) each of two classifiers has right -> McNemar's test on those that one alone has right.

    Exact binomial for up to `EXACT_UP_TO` of them, else chi-squared with continuity correction.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    if discordant > EXACT_UP_TO:
        statistic = (abs(only_first - only_second) - 1) ** 2 / discordant
        return McNemar(only_first, only_second, math.erfc(math.sqrt(statistic / 2)), False)
    tail = sum(math.comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**discordant), True)
