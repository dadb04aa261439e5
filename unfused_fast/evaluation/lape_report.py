"""The table of `lape` beside the papers': what was measured, what the papers print, what is missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unfused_fast.evaluation.report import TextTable, percent, percent_span


def summary_of(rows: Sequence[dict[str, Any]], encoder: str, out: str) -> dict[str, Any]:
    """What became of each task -> the content of lape.json; accuracies are shares, the papers' per cent.

    `average` is over the tasks that are done alone, ours and each of the paper's columns; a column with a dash among
    them has none.
    """
    average = {}
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [row for row in rows if row["benchmark"] == benchmark]
        done = [row for row in mine if row["state"] == "done"]
        papers = {name: [row["paper"][name] for row in done] for name in mine[0]["paper"]}
        average[benchmark] = {
            "tasks": f"{len(done)} of {len(mine)}",
            "test": _mean([row["test"] for row in done]),
            "paper": {name: _mean(numbers) for name, numbers in papers.items()},
        }
    return {"encoder": encoder, "tasks": [*rows], "average": average, "run": out}


def tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """A table for each benchmark, in per cent."""
    found = list[TextTable]()
    for benchmark, average in summary["average"].items():
        rows = [row for row in summary["tasks"] if row["benchmark"] == benchmark]
        fractions = sorted({fraction for row in rows for fraction in row.get("by_fraction", {})}, key=float)[:-1]
        papers = list(rows[0]["paper"])
        lines = []
        for row in rows:
            few = [row.get("by_fraction", {}).get(fraction) for fraction in fractions]
            done = row["state"] == "done"
            lines.append(
                [
                    row["title"],
                    percent(row["test"], row["standard_error"]) if done else row["state"],
                    percent_span(row["interval"]) if done else "",
                    *("" if cell is None else percent(cell["test"], cell["standard_error"]) for cell in few),
                    *_printed(row["paper"].values()),
                ]
            )
        ours = [f"average of {average['tasks']}", percent(average["test"]), "", *[""] * len(fractions)]
        lines.append([*ours, *_printed(average["paper"].values())])
        few_labels = [f"{100 * float(fraction):g} % of labels" for fraction in fractions]
        columns = ["task", f"ours, {summary['encoder']}", "95 % interval", *few_labels, *papers]
        title = "test accuracy in %, beside what the paper prints; the average is over the tasks done here"
        found.append((f"{benchmark}: {title}", columns, lines))
    return found


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the tables cannot say: cost, missing tasks and where to get them, wrong ones and why, notes."""
    said = []
    cost = next((row["cost"] for row in summary["tasks"] if row["state"] == "done"), None)
    if cost is not None:
        said.append(
            f"Encoder {summary['encoder']}: {cost['parameters']:,} parameters, {cost['macs']:,} multiply-accumulates "
            "for 0.95 s, both counted here. The paper says that its encoder has about 40 % fewer parameters than "
            "DeLoRes-M; that is its claim, which no count of ours confirms."
        )
    for row in summary["tasks"]:
        if row["state"] == "missing":
            get = row["get"]
            said.append(
                f"{row['task']} is missing: put it in a folder {get['folder']}. From: {get['source']}. Licence: "
                f"{get['licence']}. Layout: {get['layout']}."
            )
        elif row["state"] == "wrong":
            said.append(f"{row['task']} is wrong: {row['reason']}")
        elif row["notes"]:
            said.append(f"{row['task']}: {'; '.join(row['notes'])}.")
    return said


def _mean(numbers: Sequence[float | None]) -> float | None:
    """None where there are no numbers, or one of them is a dash."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known and len(known) == len(numbers) else None


def _printed(numbers: Any) -> list[str]:
    """The papers' numbers, with a blank for a dash."""
    return ["" if number is None else f"{number:.1f}" for number in numbers]
