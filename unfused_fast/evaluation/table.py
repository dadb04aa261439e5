"""What measure.py measured, as one table with errors, and comparisons of encoders.   R resamples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from unfused_fast.evaluation.intervals import Judged
from unfused_fast.evaluation.measure import Measured, Method
from unfused_fast.evaluation.report import mean_and_error
from unfused_fast.models import Cost
from unfused_fast.stages import Floats, LabelledClips, mcnemar, percentile_interval, score, unweighted_recall

Key = tuple[str, Method, float]
TABLE_COLUMNS = (
    "encoder",
    "method",
    "labels",
    "test",
    "95 % interval",
    "over repetitions",
    "over folds",
    "macro-F1",
    "valid",
    "parameters",
    "MACs",
)
PAIR_COLUMNS = ("first", "second", "method", "labels", "difference", "95 % interval", "p (bootstrap)", "p (McNemar)")


def result_rows(
    clips: LabelledClips, judgements: Sequence[Judged], costs: Mapping[str, Cost | None]
) -> list[dict[str, Any]]:
    """One row an encoder, method and share of labels, shares between 0 and 1; `costs` by encoder, None for log-mel.

    `test` is the mean over repetitions, each the mean over folds where there are some; `interval` is the percentile
    bootstrap over test recordings of that mean; `fold_error` is over folds. `standard_error` is over `repetitions`,
    which are `repeated` = seeds of one run, or runs, each the mean over its seeds: the seeds of a run share its
    encoder.
    """
    rows = []
    for (encoder, method, fraction), group in _grouped(judgements).items():
        measured = [one.found for one in group]
        tests, over = _repetitions(group)
        mean, error = mean_and_error(tests)
        low, high = percentile_interval(_mean_draws(group))
        folds = [float(value) for value in np.mean([one.rounds for one in group], axis=0)]
        rows.append(
            {
                "encoder": encoder,
                "method": method,
                "label_fraction": fraction,
                "metric": "mAP" if clips.multi_label else "accuracy",
                "test": mean,
                "interval": [low, high],
                "repetitions": len(tests),
                "repeated": over,
                "standard_error": error,
                "folds": folds if len(folds) > 1 else None,
                "fold_error": mean_and_error(folds)[1],
                "macro_f1": None if clips.multi_label else _macro_f1(clips, measured),
                "uar": None if clips.multi_label else _recall(clips, measured),
                "valid": mean_and_error([found.valid for found in measured])[0],
                "train_clips": measured[0].train_clips,
                "train_recordings": measured[0].train_recordings,
                "test_clips": measured[0].test_clips,
                "test_recordings": len(measured[0].rows),
                "features": measured[0].features,
                "parameters": None if (cost := costs[encoder]) is None else cost.parameters,
                "macs": None if cost is None else cost.macs,
                "runs": [{"run": found.run, "seed": found.seed, "lr": list(found.rates)} for found in measured],
            }
        )
    return rows


def comparisons(clips: LabelledClips, judgements: Sequence[Judged]) -> list[dict[str, Any]]:
    """Each two encoders under the same method and share of labels, over the seeds that both were measured with.

    Paired bootstrap of the difference first - second over the same resamples, two-sided; McNemar's test on the first
    repetition of each, for single labels.
    """
    pairs = []
    for (first, these), (second, those) in itertools.combinations(_grouped(judgements).items(), 2):
        shared = {one.found.seed for one in these} & {one.found.seed for one in those}
        if first[1:] != second[1:] or not shared:
            continue
        ours, theirs = ([one for one in group if one.found.seed in shared] for group in (these, those))
        difference = _mean_draws(ours) - _mean_draws(theirs)
        low, high = percentile_interval(difference)
        fewer = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        pairs.append(
            {
                "first": first[0],
                "second": second[0],
                "method": first[1],
                "label_fraction": first[2],
                "seeds": sorted(shared),
                "difference": _mean_test(ours) - _mean_test(theirs),
                "interval": [low, high],
                "p_bootstrap": min(1.0, 2 * (fewer + 1) / (len(difference) + 1)),
                "mcnemar": None
                if clips.multi_label
                else asdict(mcnemar(_right(clips, ours[0].found), _right(clips, theirs[0].found))),
            }
        )
    return pairs


def table_texts(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, in the order of TABLE_COLUMNS, in per cent."""
    return [
        [
            row["encoder"],
            row["method"],
            f"{100 * row['label_fraction']:.3g} %",
            f"{100 * row['test']:.1f}",
            _span(row["interval"]),
            _error(row),
            "" if row["fold_error"] is None else f"± {100 * row['fold_error']:.1f}",
            "" if row["macro_f1"] is None else f"{100 * row['macro_f1']:.1f}",
            f"{100 * row['valid']:.1f}",
            *("" if row[name] is None else f"{row[name]:,}" for name in ("parameters", "macs")),
        ]
        for row in rows
    ]


def pair_texts(pairs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Comparisons as text, in the order of PAIR_COLUMNS, differences in percentage points."""
    return [
        [
            pair["first"],
            pair["second"],
            pair["method"],
            f"{100 * pair['label_fraction']:.3g} %",
            f"{100 * pair['difference']:+.1f}",
            _span(pair["interval"]),
            f"{pair['p_bootstrap']:.3f}",
            "" if pair["mcnemar"] is None else f"{pair['mcnemar']['p_value']:.3g}",
        ]
        for pair in pairs
    ]


def _span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _error(row: dict[str, Any]) -> str:
    """`± 0.4 (3 runs)`, empty where there is one repetition."""
    if row["standard_error"] is None:
        return ""
    return f"± {100 * row['standard_error']:.1f} ({row['repetitions']} {row['repeated']})"


def _grouped(judgements: Sequence[Judged]) -> dict[Key, list[Judged]]:
    groups: dict[Key, list[Judged]] = {}
    for one in judgements:
        groups.setdefault((one.found.encoder, one.found.method, one.found.fraction), []).append(one)
    return groups


def _runs(group: Sequence[Judged]) -> list[list[Judged]]:
    """A run's seeds together."""
    runs: dict[str, list[Judged]] = {}
    for one in group:
        runs.setdefault(one.found.run, []).append(one)
    return list(runs.values())


def _repetitions(group: Sequence[Judged]) -> tuple[list[float], str]:
    """Metric of each run, mean over its seeds, and `runs`; or of each seed of the only run, and `seeds`."""
    tests = [[one.test for one in run] for run in _runs(group)]
    return ([mean_and_error(run)[0] for run in tests], "runs") if len(tests) > 1 else (tests[0], "seeds")


def _mean_test(group: Sequence[Judged]) -> float:
    return mean_and_error(_repetitions(group)[0])[0]


def _mean_draws(group: Sequence[Judged]) -> Floats:
    """(R,) the mean over repetitions in each resample of the test recordings."""
    draws: Floats = np.mean([np.mean([one.draws for one in run], axis=0) for run in _runs(group)], axis=0)
    return draws


def _right(clips: LabelledClips, found: Measured) -> Any:
    return found.scores.argmax(axis=1) == clips.targets[found.rows]


def _recall(clips: LabelledClips, group: Sequence[Measured]) -> float:
    return mean_and_error(
        [unweighted_recall(clips.targets[found.rows], found.scores.argmax(axis=1)) for found in group]
    )[0]


def _macro_f1(clips: LabelledClips, group: Sequence[Measured]) -> float:
    classes = len(clips.label_names)
    return mean_and_error(
        [
            score(
                torch.from_numpy(clips.targets[found.rows]), torch.from_numpy(found.scores.argmax(axis=1)), classes
            ).macro_f1
            for found in group
        ]
    )[0]
