"""Which recordings are held out of train, as validation or as test, and which labels are used where few are wanted.

N recordings, C classes. Ours: whole groups, stratified by label, drawn by seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.errors import UserError

VALID, TEST = 11, 13
"""Streams of random numbers: a held-out validation and a held-out test are drawn apart."""


def label_subset(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Rows of a share of the clips of each class, at least one each, drawn by seed; sorted. Ours: low-label
    evaluation.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 10]))
    chosen = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, math.ceil(fraction * len(rows) - 1e-9))])
    return np.sort(np.concatenate(chosen))


def hold_out_groups(
    groups: list[str], targets: NDArray[Any], fraction: float, seed: int, stream: int = VALID
) -> NDArray[np.bool_]:
    """(N,) True for what is held out: whole groups, so that of each class about the fraction is, and one at least.

    Groups come in a seeded order, and each is taken that brings the counts of the classes nearer to what is wanted. A
    group that holds the last of a class stays. Raises UserError when no group can be held out.

    Args:
        targets: (N,) int64 labels, or (N, C) bool of a multi-label set.
    """
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    rows, classes = np.nonzero(targets) if targets.ndim == 2 else (np.arange(len(targets)), targets)
    order = np.argsort(codes[rows], kind="stable")
    classes_of = np.split(classes[order], np.cumsum(np.bincount(codes[rows], minlength=len(names)))[:-1])
    left = np.bincount(classes)
    wanted, taken = np.maximum(fraction * left, 1.0), np.zeros(len(left))
    held, nearest = np.zeros(len(names), dtype=bool), (math.inf, -1)
    for group in np.random.Generator(np.random.PCG64([seed, stream])).permutation(len(names)):
        found, counts = np.unique(classes_of[group], return_counts=True)
        if not len(found) or (left[found] <= counts).any():
            continue
        missing = wanted[found] - taken[found]
        further = float((np.abs(missing - counts) - np.abs(missing)).sum())
        nearest = min(nearest, (further, int(group)))
        if further < 0:
            left[found] -= counts
            taken[found] += counts
            held[group] = True
    if nearest[1] < 0:
        raise UserError(
            "no group of its train clips can be held out, for validation or test, without losing a class; give splits "
            "or smaller groups in the CSV"
        )
    held[nearest[1]] |= not held.any()
    chosen: NDArray[np.bool_] = held[codes]
    return chosen


def units_to_hold_out(groups: list[str], targets: NDArray[Any]) -> list[str]:
    """What hold_out_groups keeps whole: the groups, or each recording by itself where every class has one group only.

    Ours: the classes of LibriSpeech are chapters, its groups too; no chapter can be spared, and test shares them all.
    """
    if targets.ndim == 2:
        return groups
    classes = len(np.unique(targets))
    if classes > 1 and len(set(zip(groups, targets.tolist(), strict=True))) == classes:
        return [str(number) for number in range(len(groups))]
    return groups
