"""How good each of measure.py's measurements is: by rounds, and in resamples of the test recordings.

T test recordings, M measurements, R resamples, F rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfused_fast.evaluation.measure import Measured
from unfused_fast.stages import AveragePrecision, Floats, LabelledClips, Rows, bootstrap_map, bootstrap_means


@dataclass(frozen=True)
class Judged:
    """One measurement and its metric: accuracy, or of a multi-label set mAP."""

    found: Measured
    rounds: Floats
    """(F,) metric of each round."""
    draws: Floats
    """(R,) mean over rounds in each resample of the test recordings."""

    @property
    def test(self) -> float:
        """Metric, mean over rounds."""
        return float(self.rounds.mean())


def judged(clips: LabelledClips, measured: Sequence[Measured], seed: int) -> list[Judged]:
    """Judges measurements of the same test recordings, all on the same resamples, which `seed` draws."""
    if clips.multi_label:
        return [_by_precision(clips, found, seed) for found in measured]
    right = np.stack([_right(clips, found) * fold_weights(found.round_of) for found in measured], axis=1)
    draws = bootstrap_means(right, seed)
    return [
        Judged(found, np.bincount(found.round_of, _right(clips, found)) / np.bincount(found.round_of), draws[:, number])
        for number, found in enumerate(measured)
    ]


def fold_weights(round_of: Rows) -> Floats:
    """(T,) number of a recording's round -> (T,) weights of mean 1, by which the mean over recordings is that over
    rounds.
    """
    sizes = np.bincount(round_of).astype(np.float64)
    weights: Floats = (len(round_of) / (len(sizes) * sizes))[round_of]
    return weights


def _right(clips: LabelledClips, found: Measured) -> Floats:
    right: Floats = (found.scores.argmax(axis=1) == clips.targets[found.rows]).astype(np.float64)
    return right


def _by_precision(clips: LabelledClips, found: Measured, seed: int) -> Judged:
    """Classes are ranked within a round, whose heads gave the scores; sorted once a round."""
    places = [np.flatnonzero(found.round_of == number) for number in range(int(found.round_of.max()) + 1)]
    rounds = [(place, AveragePrecision(clips.targets[found.rows[place]], found.scores[place])) for place in places]
    tests = np.array([precision.mean() for _, precision in rounds])
    return Judged(found, tests, bootstrap_map(rounds, len(found.rows), seed))
