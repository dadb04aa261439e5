"""Metrics of scores.   N test recordings, C classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.stages.labels import LabelledClips, Rows

Floats = NDArray[np.float64]


def metric_of(clips: LabelledClips, rows: Rows, scores: NDArray[np.float32]) -> float:
    """Accuracy, or of a multi-label set mAP, of scores (N, C) for rows (N,) of the clips."""
    if clips.multi_label:
        return AveragePrecision(clips.targets[rows], scores).mean()
    return float((clips.targets[rows] == scores.argmax(axis=1)).mean())


class AveragePrecision:
    """Average precision of each class under any weights of the clips; clips are sorted by score once.

    Area under the precision-recall steps, without interpolation; ties form one step.
    Source: scikit-learn's average_precision_score, which sorts again for each bootstrap resample.
    """

    def __init__(self, truth: NDArray[np.bool_], scores: NDArray[Any]) -> None:
        """(N, C) which classes a clip has, (N, C) scores, larger for more likely classes."""
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
