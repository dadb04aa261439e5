"""What evaluation.py measured, as one table with errors, comparisons of encoders, and a file of all predictions.

T test clips, C classes, R resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unfused_fast.encoder_cost import Cost
from unfused_fast.evaluation import Measured, Method, metric_of
from unfused_fast.linear import score
from unfused_fast.metrics import (
    AveragePrecision,
    Floats,
    bootstrap_map,
    bootstrap_means,
    mcnemar,
    percentile_interval,
    unweighted_recall,
)
from unfused_fast.protocol import LabelledClips
from unfused_fast.report import mean_and_error

Key = tuple[str, Method, float]
COLUMNS = (
    "encoder",
    "method",
    "labels",
    "test",
    "95 % interval",
    "over seeds",
    "over folds",
    "macro-F1",
    "valid",
    "parameters",
    "MACs",
)
PAIR_COLUMNS = ("first", "second", "method", "labels", "difference", "95 % interval", "p (bootstrap)", "p (McNemar)")


def bootstrap_draws(clips: LabelledClips, measured: Sequence[Measured], seed: int) -> dict[Key, Floats]:
    """(encoder, method, share of labels) -> (R,) mean metric of its repetitions in each resample of the test clips; the
    same resamples for all.
    """
    return {key: _draws(clips, group, seed) for key, group in _grouped(measured).items()}


def result_rows(
    clips: LabelledClips,
    measured: Sequence[Measured],
    costs: Mapping[str, Cost | None],
    draws: Mapping[Key, Floats],
) -> list[dict[str, Any]]:
    """One row an encoder, method and share of labels, shares between 0 and 1; `costs` by encoder, None for log-mel.

    `test` is the mean over repetitions, each the mean over folds where there are some; `interval` is the percentile
    bootstrap over test clips of that mean; `standard_error` is over repetitions, `fold_error` over folds.
    """
    rows = []
    for key, group in _grouped(measured).items():
        encoder, method, fraction = key
        tests = [_test(clips, found) for found in group]
        mean, error = mean_and_error(tests)
        low, high = percentile_interval(draws[key])
        folds = _fold_means(clips, group)
        rows.append(
            {
                "encoder": encoder,
                "method": method,
                "label_fraction": fraction,
                "metric": "mAP" if clips.multi_label else "accuracy",
                "test": mean,
                "interval": [low, high],
                "repetitions": len(group),
                "standard_error": error,
                "folds": folds if len(folds) > 1 else None,
                "fold_error": mean_and_error(folds)[1],
                "macro_f1": None if clips.multi_label else _macro_f1(clips, group),
                "uar": None if clips.multi_label else _recall(clips, group),
                "valid": mean_and_error([found.valid for found in group])[0],
                "train_clips": group[0].train_clips,
                "test_clips": len(group[0].rows),
                "features": group[0].features,
                "parameters": None if (cost := costs[encoder]) is None else cost.parameters,
                "macs": None if cost is None else cost.macs,
                "runs": [{"run": found.run, "seed": found.seed, "lr": list(found.rates)} for found in group],
            }
        )
    return rows


def comparisons(
    clips: LabelledClips, measured: Sequence[Measured], draws: Mapping[Key, Floats]
) -> list[dict[str, Any]]:
    """Each two encoders under the same method and share of labels.

    Paired bootstrap of the difference first - second over the same resamples, two-sided; McNemar's test on the first
    repetition of each, for single labels.
    """
    groups, pairs = _grouped(measured), []
    for first, second in itertools.combinations(groups, 2):
        if first[1:] != second[1:]:
            continue
        difference = draws[first] - draws[second]
        low, high = percentile_interval(difference)
        fewer = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        pairs.append(
            {
                "first": first[0],
                "second": second[0],
                "method": first[1],
                "label_fraction": first[2],
                "difference": _mean_test(clips, groups[first]) - _mean_test(clips, groups[second]),
                "interval": [low, high],
                "p_bootstrap": min(1.0, 2 * (fewer + 1) / (len(difference) + 1)),
                "mcnemar": None
                if clips.multi_label
                else asdict(mcnemar(_right(clips, groups[first][0]), _right(clips, groups[second][0]))),
            }
        )
    return pairs


def write_predictions(path: Path, clips: LabelledClips, measured: Sequence[Measured]) -> None:
    """predictions.parquet: a row for each test clip, encoder, method, share of labels and repetition.

    Columns clip_id, key, fold, label, encoder, method, label_fraction, run, seed, prediction; of a multi-label set
    `labels` and `scores` (C,) in place of label and prediction.
    """
    tables = []
    for found in measured:
        size = len(found.rows)
        columns: dict[str, Any] = {
            "clip_id": clips.clip_ids[found.rows],
            "key": [clips.keys[row] for row in found.rows],
            "fold": pa.array([None if fold < 0 else fold for fold in clips.fold_of[found.rows].tolist()], pa.int32()),
            "encoder": [found.encoder] * size,
            "method": [found.method] * size,
            "label_fraction": [found.fraction] * size,
            "run": [found.run] * size,
            "seed": [found.seed] * size,
        }
        if clips.multi_label:
            columns["labels"] = [np.flatnonzero(truth).tolist() for truth in clips.targets[found.rows]]
            columns["scores"] = pa.array(list(found.scores), pa.list_(pa.float32()))
        else:
            columns["label"] = clips.targets[found.rows]
            columns["prediction"] = found.scores.argmax(axis=1)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def table_texts(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, in the order of COLUMNS, in per cent."""
    return [
        [
            row["encoder"],
            row["method"],
            f"{row['label_fraction']:.3g}",
            f"{100 * row['test']:.1f}",
            _span(row["interval"]),
            "" if row["standard_error"] is None else f"± {100 * row['standard_error']:.1f}",
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
            f"{pair['label_fraction']:.3g}",
            f"{100 * pair['difference']:+.1f}",
            _span(pair["interval"]),
            f"{pair['p_bootstrap']:.3f}",
            "" if pair["mcnemar"] is None else f"{pair['mcnemar']['p_value']:.3g}",
        ]
        for pair in pairs
    ]


def _span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _grouped(measured: Sequence[Measured]) -> dict[Key, list[Measured]]:
    groups: dict[Key, list[Measured]] = {}
    for found in measured:
        groups.setdefault((found.encoder, found.method, found.fraction), []).append(found)
    return groups


def _right(clips: LabelledClips, found: Measured) -> Any:
    return found.scores.argmax(axis=1) == clips.targets[found.rows]


def _fold_weights(found: Measured) -> Floats:
    """(T,) weights of mean 1 under which the mean over clips is the mean over rounds."""
    sizes = np.bincount(found.round_of).astype(np.float64)
    return (len(found.rows) / (len(sizes) * sizes))[found.round_of]


def _test(clips: LabelledClips, found: Measured) -> float:
    if clips.multi_label:
        return metric_of(clips, found.rows, found.scores)
    return float((_right(clips, found) * _fold_weights(found)).mean())


def _mean_test(clips: LabelledClips, group: Sequence[Measured]) -> float:
    return mean_and_error([_test(clips, found) for found in group])[0]


def _draws(clips: LabelledClips, group: Sequence[Measured], seed: int) -> Floats:
    """(R,) the group's mean metric in each resample of the test clips."""
    if clips.multi_label:
        drawn = [
            bootstrap_map(AveragePrecision(clips.targets[found.rows], found.scores), len(found.rows), seed)
            for found in group
        ]
        return np.asarray(np.mean(drawn, axis=0), dtype=np.float64)
    values = np.mean([_right(clips, found) * _fold_weights(found) for found in group], axis=0)
    return bootstrap_means(np.asarray(values, dtype=np.float64), seed)


def _fold_means(clips: LabelledClips, group: Sequence[Measured]) -> list[float]:
    """Metric of each round, mean over repetitions."""
    return [
        mean_and_error(
            [
                metric_of(clips, found.rows[found.round_of == number], found.scores[found.round_of == number])
                for found in group
            ]
        )[0]
        for number in range(int(group[0].round_of.max()) + 1)
    ]


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
