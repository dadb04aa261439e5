"""The table of `evaluate`: what errors are over, what is paired, what a fold counts, on numbers made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import average_precision_score

from unfused_fast.evaluation import intervals
from unfused_fast.evaluation.comparison import evaluation_tables
from unfused_fast.evaluation.intervals import scored
from unfused_fast.evaluation.measure import Measured
from unfused_fast.evaluation.table import comparisons, result_rows, result_table
from unfused_fast.stages.labels import LabelledClips
from unfused_fast.stages.metrics import AveragePrecision

CLIPS = 100


def clips_of(targets: NDArray[np.generic]) -> LabelledClips:
    """Clips of one split `test`, without folds."""
    numbers = np.arange(len(targets))
    classes = targets.shape[1] if targets.ndim == 2 else 2
    names = tuple("abcdef"[:classes])
    tests = ["test"] * len(numbers)
    none = 0 * numbers - 1
    return LabelledClips(Path(), ("test",), numbers, numbers, tests, none, tests, targets, names, numbers)


def measurement(
    encoder: str, run: str, seed: int, scores: NDArray[np.float32], round_of: NDArray[np.int64] | None = None
) -> Measured:
    rows = np.arange(len(scores))
    rounds = np.zeros_like(rows) if round_of is None else round_of
    return Measured(encoder, "linear", 1.0, run, seed, rows, rounds, scores, 0.5, (0.01,), 10, 10, len(rows), 4, None)


def right_on(count: int) -> NDArray[np.float32]:
    """Scores of two classes that have the first `count` clips right, where all are of class 1."""
    found = np.zeros((CLIPS, 2), dtype=np.float32)
    found[np.arange(CLIPS), (np.arange(CLIPS) < count).astype(int)] = 1
    return found


SINGLE = clips_of(np.ones(CLIPS, dtype=np.int64))


def test_seeds_of_a_run_are_averaged_before_the_error_over_runs() -> None:
    tests = {"first": [60, 62, 61], "second": [80, 79, 81]}
    measured = [
        measurement("ours", run, seed, right_on(count))
        for run, counts in tests.items()
        for seed, count in enumerate(counts)
    ]
    (row,) = result_rows(SINGLE, scored(SINGLE, measured, 0))
    assert row["test"] == pytest.approx(0.705)
    assert row["standard_error"] == pytest.approx(np.std([0.61, 0.80], ddof=1) / 2**0.5), "two encoders, not six"
    assert (row["repetitions"], row["repeated"]) == (2, "runs")
    assert "± 9.5 (2 runs)" in result_table("", [row])[2][0]
    (alone,) = result_rows(SINGLE, scored(SINGLE, measured[:3], 0))
    assert alone["standard_error"] == pytest.approx(np.std([0.60, 0.62, 0.61], ddof=1) / 3**0.5)
    assert (alone["repetitions"], alone["repeated"]) == (3, "seeds")


def test_encoders_are_compared_over_the_seeds_of_both() -> None:
    measured = [measurement("A", f"A{seed}", seed, right_on(count)) for seed, count in enumerate([90, 80, 10])]
    measured += [measurement("B", f"B{seed}", seed, right_on(count)) for seed, count in ((1, 70), (0, 70), (3, 0))]
    (pair,) = comparisons(SINGLE, scored(SINGLE, measured, 0))
    assert pair["seeds"] == [0, 1] and pair["difference"] == pytest.approx(0.15)
    assert 0 < pair["interval"][0] < 0.15 < pair["interval"][1]
    assert comparisons(SINGLE, scored(SINGLE, [measured[0], measured[-1]], 0)) == [], "no seed is of both"


def test_one_recording_has_no_p_of_the_bootstrap() -> None:
    clips, right, wrong = clips_of(np.ones(1, dtype=np.int64)), np.array([[0, 1]]), np.array([[1, 0]])
    measured = [
        measurement(name, name, 0, of.astype(np.float32)) for name, of in zip("ABC", (wrong, right, right), strict=True)
    ]
    scores = scored(clips, measured, 0)
    pairs = {pair["first"] + pair["second"]: pair for pair in comparisons(clips, scores)}
    assert (pairs["AB"]["interval"], pairs["AB"]["p_bootstrap"]) == ([-1, -1], None) and pairs["BC"]["p_bootstrap"] == 1
    facts = {"metric": "accuracy", "task": "a set", "plan": {"holdout": None}, "comparisons": [*pairs.values()]}
    result, differences = evaluation_tables({**facts, "rows": result_rows(clips, scores)})
    assert result[0] == "test accuracy in % on a set, 1 recording"
    assert [row[differences[1].index("p (bootstrap)")] for row in differences[2]] == ["", "", "1.000"]


def test_of_several_labels_the_test_is_the_mean_over_folds_and_a_fold_is_sorted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((60, 3)) < 0.4
    round_of = np.repeat([0, 1], [20, 40])
    # the heads of the second fold score on another scale, which says nothing within a fold
    scores = (truth + generator.standard_normal(truth.shape) + 10 * round_of[:, None]).astype(np.float32)
    made: list[int] = []

    class Counted(AveragePrecision):
        def __init__(self, truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> None:
            made.append(len(truth))
            super().__init__(truth, scores)

    monkeypatch.setattr(intervals, "AveragePrecision", Counted)
    clips = clips_of(truth)
    measured = [measurement(name, name, 0, scores, round_of) for name in ("A", "B")]
    scores_of = scored(clips, measured, 0)
    row, _ = result_rows(clips, scores_of)
    comparisons(clips, scores_of)
    folds = [average_precision_score(truth[round_of == n], scores[round_of == n], average="macro") for n in (0, 1)]
    assert row["folds"] == pytest.approx(folds) and row["test"] == pytest.approx(np.mean(folds))
    assert row["test"] != pytest.approx(average_precision_score(truth, scores, average="macro"), abs=0.01)
    assert row["interval"][0] < row["test"] < row["interval"][1]
    assert made == [20, 40, 20, 40]


def test_the_interval_of_several_runs_is_that_of_their_mean() -> None:
    measured = [measurement("ours", f"run{seed}", seed, right_on(count)) for seed, count in enumerate([100, 50])]
    (row,) = result_rows(SINGLE, scored(SINGLE, measured, 0))
    # half the clips are right in both, half in one: the mean is a half and half a share of Binomial(100, 0.5)
    expected = 0.5 + 0.5 * binom.ppf([0.025, 0.975], 100, 0.5) / 100
    assert row["interval"] == pytest.approx([*expected], abs=0.011)


def test_f1_and_recall_are_over_the_classes_that_occur() -> None:
    labels, names = np.array([0, 0, 0, 2]), np.eye(3, dtype=np.float32)
    clips = clips_of(labels)
    clips = replace(clips, label_names=("a", "b", "c"))
    (row,) = result_rows(clips, scored(clips, [measurement("ours", "run", 0, names[[0, 0, 1, 2]])], 0))
    assert row["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 1) / 2) and row["uar"] == pytest.approx((2 / 3 + 1) / 2)
