"""The table of `evaluate`: what errors are over, what is paired, what a fold counts, on numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import average_precision_score

from unfused_fast.errors import UserError
from unfused_fast.evaluation import intervals as judging
from unfused_fast.evaluation.intervals import judged
from unfused_fast.evaluation.measure import Measured
from unfused_fast.evaluation.predictions import accuracy_interval, write_predictions
from unfused_fast.evaluation.table import comparisons, result_rows, table_texts
from unfused_fast.stages.labels import LabelledClips
from unfused_fast.stages.metrics import AveragePrecision

CLIPS = 100


def clips_of(targets: NDArray[np.generic]) -> LabelledClips:
    """Clips of one split `test`, without folds."""
    numbers = np.arange(len(targets))
    keys = [f"clip-{number}" for number in numbers]
    classes = targets.shape[1] if targets.ndim == 2 else 2
    names = tuple("abcdef"[:classes])
    tests = ["test"] * len(keys)
    return LabelledClips(("test",), numbers, numbers, keys, tests, 0 * numbers - 1, keys, targets, names, numbers)


def measurement(
    encoder: str, run: str, seed: int, scores: NDArray[np.float32], round_of: NDArray[np.int64] | None = None
) -> Measured:
    rows = np.arange(len(scores))
    rounds = np.zeros_like(rows) if round_of is None else round_of
    return Measured(encoder, "linear", 1.0, run, seed, rows, rounds, scores, 0.5, (0.01,), 10, 10, len(rows), 4)


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
    (row,) = result_rows(SINGLE, judged(SINGLE, measured, 0), {"ours": None})
    assert row["test"] == pytest.approx(0.705)
    assert row["standard_error"] == pytest.approx(np.std([0.61, 0.80], ddof=1) / 2**0.5), "two encoders, not six"
    assert (row["repetitions"], row["repeated"]) == (2, "runs")
    assert "± 9.5 (2 runs)" in table_texts([row])[0]
    (alone,) = result_rows(SINGLE, judged(SINGLE, measured[:3], 0), {"ours": None})
    assert alone["standard_error"] == pytest.approx(np.std([0.60, 0.62, 0.61], ddof=1) / 3**0.5)
    assert (alone["repetitions"], alone["repeated"]) == (3, "seeds")


def test_encoders_are_compared_over_the_seeds_of_both() -> None:
    measured = [measurement("A", f"A{seed}", seed, right_on(count)) for seed, count in enumerate([90, 80, 10])]
    measured += [measurement("B", f"B{seed}", seed, right_on(count)) for seed, count in ((1, 70), (0, 70), (3, 0))]
    (pair,) = comparisons(SINGLE, judged(SINGLE, measured, 0))
    assert pair["seeds"] == [0, 1] and pair["difference"] == pytest.approx(0.15)
    assert 0 < pair["interval"][0] < 0.15 < pair["interval"][1]
    assert comparisons(SINGLE, judged(SINGLE, [measured[0], measured[-1]], 0)) == [], "no seed is of both"


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

    monkeypatch.setattr(judging, "AveragePrecision", Counted)
    clips = clips_of(truth)
    measured = [measurement(name, name, 0, scores, round_of) for name in ("A", "B")]
    judgements = judged(clips, measured, 0)
    row, _ = result_rows(clips, judgements, {"A": None, "B": None})
    comparisons(clips, judgements)
    folds = [average_precision_score(truth[round_of == n], scores[round_of == n], average="macro") for n in (0, 1)]
    assert row["folds"] == pytest.approx(folds) and row["test"] == pytest.approx(np.mean(folds))
    assert row["test"] != pytest.approx(average_precision_score(truth, scores, average="macro"), abs=0.01)
    assert row["interval"][0] < row["test"] < row["interval"][1]
    assert made == [20, 40, 20, 40]


def test_the_interval_of_several_predictions_is_that_of_their_mean(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.parquet" for seed in range(2)]
    for seed, count in enumerate([100, 50]):
        write_predictions(paths[seed], SINGLE, [measurement("ours", "run", seed, right_on(count))])
    # half the clips are right in both, half in one: the mean is a half and half a share of Binomial(100, 0.5)
    expected = 0.5 + 0.5 * binom.ppf([0.025, 0.975], 100, 0.5) / 100
    assert accuracy_interval(paths, 1.0, False, 0) == pytest.approx(tuple(expected), abs=0.011)
    assert accuracy_interval(paths[:1], 1.0, False, 0) == (1.0, 1.0)
    with pytest.raises(UserError, match=r"other clips than in .*0\.parquet"):
        accuracy_interval(paths, 0.5, False, 0)
    paths[1].write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"1\.parquet: cannot be read"):
        accuracy_interval(paths, 1.0, False, 0)
