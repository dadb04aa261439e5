"""The content of compare.json as tables, sentences and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfused_fast.config import BASELINES
from unfused_fast.console import counted
from unfused_fast.evaluation.report import SELECTED_ON_TEST, TextTable, beside, ending, not_shown_text, spread_text
from unfused_fast.methods import METHODS
from unfused_fast.training import draw, plot_scores

TITLES: dict[str, str] = {"logmel": "log-mel", "random": "random", **{name: of.title for name, of in METHODS.items()}}
"""Encoder -> its name in tables, a method's as in the papers'."""
PRINTED = {"random": ("random, frozen",), "DECAR-v1": ("DECAR, frozen",)}
"""Names in tables -> columns of DECAR's Table 2; LAPE's columns are named as the methods."""
SPLITS = ("valid", "test")
METRICS = ("accuracy", "mAP")


def seen_text(of: Mapping[str, Any]) -> str:
    """`10 epochs of 2,000 clips of pool`."""
    return f"{counted(of['epochs'], 'epoch')} of {counted(of['clips'], 'clip')} of {of['set']}"


def named(row: Mapping[str, Any]) -> str:
    """`BYOL-A (byol)`: the title, and the name for flags where that is more than the title in lower case."""
    title, name = row["title"], row["encoder"]
    return str(title) if name in BASELINES or title.lower() == name else f"{title} ({name})"


def comparison_tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """Test and validation in per cent, with standard errors over seeds; and beside the papers' figures, if any."""
    tasks, rows = summary["tasks"], summary["rows"]
    names = [name if task["metric"] == "accuracy" else f"{name}, mAP" for name, task in tasks.items()]

    def scores(split: str) -> list[list[str]]:
        return [[spread_text(row["tasks"][task][split]) for task in tasks] for row in rows]

    def about(split: str) -> str:
        return f"{split} {_metric(summary)} in %, mean ± standard error over seeds"

    columns = ["method", "mean, valid", "mean, test", *names, "seconds", "seeds", "trouble"]
    lines = []
    for row, tested in zip(rows, scores("test"), strict=True):
        means, (seconds, left) = [spread_text(row["mean"][split]) for split in SPLITS], ending(row)
        lines.append([named(row), *means, *tested, seconds, str(len(row["seeds"])), left])
    validated = [[named(row), *of] for row, of in zip(rows, scores("valid"), strict=True)]
    return [
        (about("test"), columns, lines),
        (about("validation"), ["method", *names], validated),
        *_printed_table(summary),
    ]


def _printed_table(summary: Mapping[str, Any]) -> Iterator[TextTable]:
    """Test scores beside the papers' figures, where a task is one of theirs; below them columns that only they have."""
    printed = {name: task["paper"] for name, task in summary["tasks"].items() if task["paper"] is not None}
    if not printed:
        return
    rows, taken = list[list[str]](), set[str]()
    for row in summary["rows"]:
        column = PRINTED.get(row["title"], ())
        numbers = [next((of[name] for name in (row["title"], *column) if name in of), None) for of in printed.values()]
        here = (spread_text(row["tasks"][task]["test"]) for task in printed)
        rows.append([named(row), *(beside(*cell) for cell in zip(here, numbers, strict=True))])
        taken |= {row["title"], *column}
    for column in dict.fromkeys(name for of in printed.values() for name in of):
        numbers = [of.get(column) for of in printed.values()]
        if column not in taken and any(numbers):
            rows.append([column, *(beside("", number) for number in numbers)])
    yield "test accuracy in %, and as printed (in brackets)", ["method", *printed], rows


def comparison_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What was the same for all, and which method validation prefers."""
    what = seen_text(summary["seen"])
    lines = [f"Each method saw {what}, through the same front end and encoder, in crops of the same length."]
    if summary["select"] == "best_test":
        lines.append(SELECTED_ON_TEST)
    held = [name for name, task in summary["tasks"].items() if task["holdout"] is not None]
    if held:
        lines.append(f"Test held out of train (--holdout {summary['holdout']:g}): {', '.join(held)}.")
    if any(task["paper"] for task in summary["tasks"].values()):
        lines.append("Printed figures are of encoders that were pre-trained on the papers' own clips.")
    if _metric(summary) == "score":
        of = {
            metric: [name for name, task in summary["tasks"].items() if task["metric"] == metric] for metric in METRICS
        }
        lines.append(
            "Scores are " + "; ".join(f"{metric} for {', '.join(names)}" for metric, names in of.items()) + "."
        )
    lines += verdict(summary["rows"])
    return [*lines, *not_shown_text(summary, "methods, tasks and seeds")]


def _metric(summary: Mapping[str, Any]) -> str:
    """What a mean over the tasks is of: their metric, or `score` where they differ."""
    metrics = {task["metric"] for task in summary["tasks"].values()}
    return str(metrics.pop()) if len(metrics) == 1 else "score"


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method with the highest mean on validation, which others it is not told apart from, and whether it is above
    the baselines; nothing where no method was evaluated.

    Two encoders are told apart where mean ± standard error of one and of the other do not overlap. Ours: the simplest
    rule, as the bars of the picture show it; it is no test.
    """
    valid = {row["title"]: row["mean"]["valid"] for row in rows if row["seeds"]}
    baselines = [TITLES[name] for name in BASELINES if TITLES[name] in valid]
    methods = [title for title in valid if title not in baselines]
    if not methods:
        return []
    best = max(methods, key=lambda title: float(valid[title]["mean"]))
    top, error = valid[best]["mean"], valid[best]["standard_error"]
    among = f" ({', '.join(f'{title} {spread_text(valid[title])}' for title in baselines)})" if baselines else ""
    lines = [f"Highest on validation: {best}, {spread_text(valid[best])}{among}."]
    if above := [title for title in baselines if valid[title]["mean"] >= top]:
        lines.append(f"No method is above {' or '.join(above)} there.")
    if error is None:
        lines.append("One seed gives no standard error and cannot tell methods apart: give more --seeds.")
    elif near := [title for title, of in valid.items() if title != best and _overlap(valid[best], of)]:
        lines.append(f"{best} cannot be told apart from {', '.join(near)}: their standard errors overlap.")
    return [*lines, "Choose by validation: the largest of several test numbers is too high."]


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether mean ± standard error overlap; of one seed, which has no error, they may."""
    errors = first["standard_error"], second["standard_error"]
    return None in errors or abs(first["mean"] - second["mean"]) <= sum(errors)


def write_scores(out: Path, summary: Mapping[str, Any]) -> None:
    """OUT/compare.png: mean test score against training seconds, baselines as lines, bars of one standard error."""
    shown = [row for row in summary["rows"] if row["seeds"]]
    scores = {row["title"]: _in_percent(row["mean"]["test"]) for row in shown}
    points = {
        row["title"]: ((row["seconds"]["mean"], row["seconds"]["standard_error"] or 0.0), scores[row["title"]])
        for row in shown
        if row["encoder"] not in BASELINES
    }
    lines = {title: score for title, score in scores.items() if title not in points}
    if points:
        counts = sorted({len(row["seeds"]) for row in shown})
        fewest = "" if len(counts) == 1 else f"{counts[0]} to "
        title = f"{counted(len(summary['tasks']), 'task')}, {fewest}{counted(counts[-1], 'seed')}"
        title += ", bars of one standard error" if counts[-1] > 1 else ""
        labels = "training seconds", f"mean test {_metric(summary)} in %"
        draw(out / "compare.png", plot_scores, points, lines, labels, title)


def _in_percent(of: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * of["mean"], 100 * (of["standard_error"] or 0.0)
