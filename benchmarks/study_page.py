"""The page of study.py: its tables, and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from unfused_fast.console import counted
from unfused_fast.evaluation import markdown, mean_and_error, percent
from unfused_fast.evaluation.table import TABLE_COLUMNS, result_table

FEWEST_CLIPS = 6
"""A change of fewer test clips is never claimed: five of five are chance to a sign test (p = 0.06), six are not."""
PAIR_COLUMNS = ("first", "second", "difference", "95 % over test clips", "95 % over seeds", "shown")
DEVIATION_COLUMNS = (
    *("set", "stage", "in place of recommended's", "preset", "change of test", "95 % over seeds", "shown", "trouble"),
)
SEARCH_COLUMNS = (
    *("set", "encoder", "purity", "NMI", "valid", "above stage 1", "95 % over seeds", "shown", "test", "trouble"),
)
HIDDEN = {"method", "labels", "over folds"}
"""Columns of the evaluation's table that are the same in every row here."""


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds by Student's t; None for fewer than three, and for seeds that all agree.

    Ours: scores are counts of few clips, and seeds that agree by chance would give an interval of no width.
    """
    mean, error = mean_and_error(values) if len(values) > 2 else (0.0, None)
    if error is None or error < 1e-9:
        return None
    low, high = student.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def shown(*intervals: Sequence[float] | None) -> bool:
    """Whether a difference is one: all its intervals, over test clips and over seeds, leave out 0, on the same side.

    Ours: either alone says nothing of the other source of chance.
    """
    return any(all(one is not None and side * one[0] > 0 < side * one[1] for one in intervals) for side in (1, -1))


def page(study: Mapping[str, Any]) -> str:
    """The content of study.json as markdown."""
    parts = ["# The embedded recordings"]
    if study["quick"]:
        parts.append("**A check that everything works, with tiny encoders and one epoch: no results.**")
    sized = "; ".join(f"{stage} {_settings(values)}" for stage, values in study["sized"].items() if values)
    given = f"Set for all: `{_settings(study['values'])}`. " if study["values"] else ""
    parts.append(
        f"Written by `benchmarks/study.py`: {counted(study['size']['seeds'], 'seed')}, "
        f"{counted(study['pretraining_clips'], 'clip')} for stage 1, which reads no labels. The size sets, for every "
        f"preset: `{sized}` (widths for AudioNTT alone, of which model.channels=64 is the paper's). {given}Everything "
        f"else is as the presets have it (docs/recipe.md). On {study['device']} ({counted(study['cores'], 'core')}), "
        f"{study['versions']}, commit {study['commit']}, {study['date']}."
    )
    parts.append(
        "Every encoder is frozen and judged alike: linear heads by the preset `recommended`, their rate chosen by "
        "validation, test read once. `random` is an untrained encoder, one a seed. Intervals over test clips are "
        "percentile bootstraps of the mean over seeds, those over seeds Student's t. A difference counts as shown "
        "where both leave out 0, with three seeds or more that do not all agree; nothing is corrected for many "
        "comparisons."
    )
    for target in study["targets"]:
        parts += _target(target)
    if study["failed"]:
        parts += ["Runs that failed and are left out:", "\n".join(f"- {sentence}" for sentence in study["failed"])]
    if study["searched"]:
        parts += [
            "## Could stage 2 be better than stage 1?",
            "One field of stage 2 at a time, all others as `recommended`: accuracy in %, mean ± standard error over "
            "the same seeds. Validation judges, beside that of stage 1's encoder of the same seed; test is shown, and "
            "chooses nothing. Purity and NMI of the pseudo-labels are against the labels of the same clips, which "
            "stage 2 does not read; more clusters are purer by themselves. The labels themselves as pseudo-labels are "
            "an upper bound and no UnFuSeD: no better clustering can be expected to win more.",
            markdown(SEARCH_COLUMNS, [row for one in study["searched"] for row in _searched(one)]),
        ]
    if study["deviations"]:
        parts += [
            "## What the presets' deviations cost",
            "One field of one stage at a time, where it can be changed alone, all others as `recommended`: points of "
            "test accuracy, mean ± standard error over the same seeds. Stage pretrain is judged by its own encoder, "
            f"the others by that of stage 2. A change counts as shown from {FEWEST_CLIPS} test clips on.",
            markdown(DEVIATION_COLUMNS, [_deviation(line) for line in study["deviations"]]),
        ]
    return "\n\n".join(parts) + "\n"


def _target(target: Mapping[str, Any]) -> Iterator[str]:
    kept = [number for number, column in enumerate(TABLE_COLUMNS) if column not in HIDDEN]
    rows = [[texts[number] for number in kept] for texts in result_table("", target["rows"])[2]]
    clips = ", ".join(f"{count:,} {name}" for name, count in target["clips"].items())
    chance = f" (chance {100 / target['classes']:.1f} %)" if target["metric"] == "accuracy" else ""
    yield f"## {target['task']}"
    yield (
        f"{target['classes']} classes{chance}; clips: {clips}. Test {target['metric']} in %; multiply-accumulates for "
        "0.95 s."
    )
    yield markdown([TABLE_COLUMNS[number] for number in kept], rows)
    yield "Differences first - second, in points:"
    pairs = []
    for pair in target["pairs"]:
        names, difference = (pair["first"], pair["second"]), percent(pair["difference"], sign="+")
        pairs.append([*names, difference, _span(pair["interval"]), *_over_seeds(pair["by_seed"], pair["interval"])])
    yield markdown(PAIR_COLUMNS, pairs)


def _searched(one: Mapping[str, Any]) -> Iterator[list[str]]:
    stage1, bound = one["stage1"], one["labels"]
    yield [one["task"], "stage 1", "", "", _mean(stage1["valid"]), "", "", "", _mean(stage1["test"]), ""]
    named = [("stage 2, recommended" if row["settings"] == "base" else row["settings"], row) for row in one["rows"]]
    for name, row in [*named, ("the labels themselves as pseudo-labels", bound)]:
        agreement = [f"{mean_and_error(row[key])[0]:.2f}" if row[key] else "" for key in ("purity", "nmi")]
        scores = [_mean(row["valid"]), _mean(row["gain"], "+"), *_over_seeds(row["gain"]), _mean(row["test"])]
        yield [one["task"], name, *agreement, *scores, _trouble(row)]


def _deviation(line: Mapping[str, Any]) -> list[str]:
    span, found = _over_seeds(line["by_seed"])
    if line["by_seed"] and abs(mean_and_error(line["by_seed"])[0]) * line["test_clips"] < FEWEST_CLIPS:
        found = "no"
    what = [line["task"], line["stage"], line["settings"], ", ".join(line["presets"])]
    return [*what, _mean(line["by_seed"], "+"), span, found, _trouble(line)]


def _over_seeds(by_seed: Sequence[float], *others: Sequence[float]) -> tuple[str, str]:
    """Interval over seeds, and whether it and the others show a difference."""
    interval = seed_interval(by_seed)
    return _span(interval), "yes" if shown(interval, *others) else "no"


def _trouble(row: Mapping[str, Any]) -> str:
    return "; ".join(dict.fromkeys(row["failed"]))


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Per cent, with the standard error; empty where nothing was measured."""
    return percent(*mean_and_error(values), sign) if values else ""


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else " to ".join(percent(end, sign="+") for end in interval)
