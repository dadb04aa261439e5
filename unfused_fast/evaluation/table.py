"""The measurements of measure.py, as one table with errors, and comparisons of encoders.   R resamples."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, recall_score

from unfused_fast.evaluation.intervals import Scored, mcnemar, percentile_interval, right_of
from unfused_fast.evaluation.measure import Method
from unfused_fast.evaluation.report import TextTable, mean_and_error, percent, percent_span
from unfused_fast.stages import Floats, LabelledClips

Key = tuple[str, Method, float]
"""Encoder, method, share of labels."""
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


def result_rows(clips: LabelledClips, scores: Sequence[Scored]) -> list[dict[str, Any]]:
    """One row per encoder, method and share of labels, shares between 0 and 1.

    `test` is the mean over repetitions, each the mean over folds where there are some; `interval` is that mean's
    percentile bootstrap over test recordings; `fold_error` is over folds. `standard_error` is over `repetitions`, which
    are `repeated` = seeds of one run, or runs, each the mean over its seeds: the seeds of a run share its encoder.
    """
    rows = []
    for (encoder, method, fraction), group in _grouped(scores).items():
        first, tests = group[0].found, _repetitions(group)
        mean, error = mean_and_error(tests)
        folds = np.mean([one.rounds for one in group], axis=0).tolist()
        rows.append(
            {
                "encoder": encoder,
                "method": method,
                "label_fraction": fraction,
                "metric": "mAP" if clips.multi_label else "accuracy",
                "test": mean,
                "interval": [*percentile_interval(_mean_draws(group))],
                "repetitions": len(tests),
                "repeated": "runs" if len(_runs(group)) > 1 else "seeds",
                "standard_error": error,
                "folds": folds if len(folds) > 1 else None,
                "fold_error": mean_and_error(folds)[1],
                "macro_f1": _over_classes(f1_score, clips, group),
                "uar": _over_classes(recall_score, clips, group),
                "valid": float(np.mean([one.found.valid for one in group])),
                "train_clips": first.train_clips,
                "train_recordings": first.train_recordings,
                "test_clips": first.test_clips,
                "test_recordings": len(first.rows),
                "features": first.features,
                "parameters": None if first.cost is None else first.cost.parameters,
                "macs": None if first.cost is None else first.cost.macs,
                "runs": [{"run": one.found.run, "seed": one.found.seed, "lr": list(one.found.rates)} for one in group],
            }
        )
    return rows


def comparisons(clips: LabelledClips, scores: Sequence[Scored]) -> list[dict[str, Any]]:
    """Each pair of encoders with the same method and share of labels, over the seeds that both were measured with.

    Paired bootstrap of the difference first - second over the same resamples, two-sided, without a p value where all of
    them give the same difference, which then says nothing about its error; McNemar's test on the first
    repetition of each, for single labels.
    """
    pairs = []
    for (first, these), (second, those) in itertools.combinations(_grouped(scores).items(), 2):
        shared = {one.found.seed for one in these} & {one.found.seed for one in those}
        if first[1:] != second[1:] or not shared:
            continue
        ours, theirs = ([one for one in group if one.found.seed in shared] for group in (these, those))
        difference = _mean_draws(ours) - _mean_draws(theirs)
        fewer = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        one_value = difference.min() == difference.max() != 0
        right = [] if clips.multi_label else [right_of(clips, group[0].found) for group in (ours, theirs)]
        pairs.append(
            {
                "first": first[0],
                "second": second[0],
                "method": first[1],
                "label_fraction": first[2],
                "seeds": sorted(shared),
                "difference": float(np.mean(_repetitions(ours)) - np.mean(_repetitions(theirs))),
                "interval": [*percentile_interval(difference)],
                "p_bootstrap": None if one_value else min(1.0, 2 * (fewer + 1) / (len(difference) + 1)),
                "mcnemar": mcnemar(*right) if right else None,
            }
        )
    return pairs


def result_table(title: str, rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """The rows as text, in per cent."""
    texts = []
    for row in rows:
        over = f" ({row['repetitions']} {row['repeated']})"
        texts.append(
            [
                row["encoder"],
                row["method"],
                f"{100 * row['label_fraction']:.3g} %",
                percent(row["test"]),
                percent_span(row["interval"]),
                "" if row["standard_error"] is None else f"± {percent(row['standard_error'])}{over}",
                "" if row["fold_error"] is None else f"± {percent(row['fold_error'])}",
                percent(row["macro_f1"]),
                percent(row["valid"]),
                *("" if row[name] is None else f"{row[name]:,}" for name in ("parameters", "macs")),
            ]
        )
    return title, TABLE_COLUMNS, texts


def pair_table(pairs: Sequence[Mapping[str, Any]]) -> TextTable:
    """Comparisons as text, differences in percentage points."""
    texts = [
        [
            pair["first"],
            pair["second"],
            pair["method"],
            f"{100 * pair['label_fraction']:.3g} %",
            percent(pair["difference"], sign="+"),
            percent_span(pair["interval"]),
            "" if pair["p_bootstrap"] is None else f"{pair['p_bootstrap']:.3f}",
            "" if pair["mcnemar"] is None else f"{pair['mcnemar']['p_value']:.3g}",
        ]
        for pair in pairs
    ]
    return "differences, first minus second, in points", PAIR_COLUMNS, texts


def without_empty_columns(table: TextTable) -> TextTable:
    """The table without columns that are empty in every row."""
    title, columns, rows = table
    kept = [number for number in range(len(columns)) if any(texts[number] for texts in rows)]
    return title, [columns[number] for number in kept], [[texts[number] for number in kept] for texts in rows]


def _grouped(scores: Sequence[Scored]) -> dict[Key, list[Scored]]:
    groups = defaultdict[Key, list[Scored]](list)
    for one in scores:
        groups[one.found.encoder, one.found.method, one.found.fraction].append(one)
    return groups


def _runs(group: Sequence[Scored]) -> list[list[Scored]]:
    """All seeds of a run."""
    runs = defaultdict[str, list[Scored]](list)
    for one in group:
        runs[one.found.run].append(one)
    return list(runs.values())


def _repetitions(group: Sequence[Scored]) -> list[float]:
    """Metric of each run, mean over its seeds; or of each seed of the only run."""
    tests = [[one.test for one in run] for run in _runs(group)]
    return [float(np.mean(run)) for run in tests] if len(tests) > 1 else tests[0]


def _mean_draws(group: Sequence[Scored]) -> Floats:
    """(R,) the mean over repetitions in each resample of the test recordings."""
    draws: Floats = np.mean([np.mean([one.draws for one in run], axis=0) for run in _runs(group)], axis=0)
    return draws


def _over_classes(metric: Callable[..., float], clips: LabelledClips, group: Sequence[Scored]) -> float | None:
    """Mean over repetitions of the mean over the classes that occur in the labels, which are the same for every
    encoder; None for several labels a clip.
    """
    if clips.multi_label:
        return None
    found = [
        metric(labels, one.found.scores.argmax(axis=1), labels=np.unique(labels), average="macro", zero_division=0)
        for one in group
        for labels in [clips.targets[one.found.rows]]
    ]
    return float(np.mean(found))
