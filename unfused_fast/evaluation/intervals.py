"""Metrics of measurements and their uncertainty: by rounds, and in resamples of the test recordings.

T test recordings, M measurements, R resamples, F rounds. Percentile bootstrap over recordings; McNemar's test and the
paired bootstrap of two encoders on the same recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2

from unfused_fast.evaluation.measure import Measured
from unfused_fast.stages import AveragePrecision, Floats, LabelledClips, Rows

RESAMPLES = 1000
"""Resamples of the recordings, for an interval. Ours: 25 resamples are then beyond each end of a 95 % interval."""
EXACT_UP_TO = 25
"""Discordant recordings up to which McNemar's test is the exact binomial one. Source: the usual rule for its
chi-squared approximation, as in Edwards, Psychometrika 1948, whose continuity correction is used above it.
"""


@dataclass(frozen=True)
class Scored:
    """One measurement and its metric: accuracy, or for a multi-label set mAP."""

    found: Measured
    rounds: Floats
    """(F,) metric of each round."""
    draws: Floats
    """(R,) mean over rounds in each resample of the test recordings."""

    @property
    def test(self) -> float:
        """Metric, mean over rounds."""
        return float(self.rounds.mean())


def scored(clips: LabelledClips, measured: Sequence[Measured], seed: int) -> list[Scored]:
    """Scores measurements of the same test recordings, all on the same resamples, which `seed` draws."""
    if clips.multi_label:
        return [_by_precision(clips, found, seed) for found in measured]
    right = [right_of(clips, found).astype(np.float64) for found in measured]
    weighted = [each * fold_weights(found.round_of) for each, found in zip(right, measured, strict=True)]
    draws = bootstrap_means(np.stack(weighted, axis=1), seed)
    return [
        Scored(found, np.bincount(found.round_of, right[number]) / np.bincount(found.round_of), draws[:, number])
        for number, found in enumerate(measured)
    ]


def right_of(clips: LabelledClips, found: Measured) -> NDArray[np.bool_]:
    """(T,) whether a recording's class is predicted."""
    right: NDArray[np.bool_] = found.scores.argmax(axis=1) == clips.targets[found.rows]
    return right


def fold_weights(round_of: Rows) -> Floats:
    """(T,) number of a recording's round -> (T,) weights of mean 1, with which the mean over recordings equals that
    over rounds.
    """
    sizes = np.bincount(round_of)
    weights: Floats = len(round_of) / (len(sizes) * sizes[round_of])
    return weights


def _by_precision(clips: LabelledClips, found: Measured, seed: int) -> Scored:
    """Scores are ranked within a round, since each round has its own heads; sorted once per round."""
    places = [np.flatnonzero(found.round_of == number) for number in range(int(found.round_of.max()) + 1)]
    rounds = [(place, AveragePrecision(clips.targets[found.rows[place]], found.scores[place])) for place in places]
    tests = np.array([precision.mean() for _, precision in rounds])
    return Scored(found, tests, bootstrap_map(rounds, len(found.rows), seed))


def bootstrap_means(values: Floats, seed: int) -> Floats:
    """Mean of `values` (N,) or (N, M) over the rows in each of R draws with replacement, (R,) or (R, M). For 0 and 1,
    wrong and right, these are accuracies. A seed gives the same draws each time, so that encoders are compared on the
    same resamples.
    """
    generator, rows = np.random.Generator(np.random.PCG64([seed, 20])), len(values)
    draws = (np.bincount(generator.integers(0, rows, rows), minlength=rows) for _ in range(RESAMPLES))
    return np.array([counts @ values / rows for counts in draws])


def bootstrap_map(rounds: Sequence[tuple[Rows, AveragePrecision]], clips: int, seed: int) -> Floats:
    """(rows among the clips, precision) of each round -> mAP under each draw of weights, mean over rounds, (R,).

    The Bayesian bootstrap (Rubin, Annals of Statistics 1981): weights are uniform over all that sum to 1; in the usual
    bootstrap they are counts. Ours: a count of 0 for all clips of a rare class would leave it out of the mean.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 20]))
    weights = (generator.dirichlet(np.ones(clips)) for _ in range(RESAMPLES))
    return np.array([np.mean([precision.mean(weight[rows]) for rows, precision in rounds]) for weight in weights])


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """The middle 95 % of draws (R,), without NaN."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, float]:
    """Which recordings (T,) each of two classifiers has right -> McNemar's test on those that only one has right.

    Exact binomial for up to `EXACT_UP_TO` of them, else chi-squared with continuity correction; two-sided.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    exact = discordant <= EXACT_UP_TO
    if exact:
        p_value = binomtest(only_first, discordant).pvalue if discordant else 1.0
    else:
        p_value = chi2.sf((abs(only_first - only_second) - 1) ** 2 / discordant, 1)
    return {"only_first": only_first, "only_second": only_second, "p_value": float(p_value), "exact": exact}
