"""The table of `lape` beside the papers': what was measured, what the papers print, what is missing or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unfused_fast.config import Task
from unfused_fast.evaluation.report import markdown, mean_and_error
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import write_json


def summary_of(tasks: Sequence[Task], lines: Sequence[dict[str, Any]], encoder: str, out: str) -> dict[str, Any]:
    """What became of each task -> the content of lape.json; accuracies are shares, the papers' per cent; `interval` of
    a line that is done is of the mean over its results.

    `average` is over the tasks that are done alone, ours and each of the paper's columns; a column with a dash among
    them has none.
    """
    rows = []
    for task, line in zip(tasks, lines, strict=True):
        row = {**line, "benchmark": task.benchmark, "paper": dict(task.results)}
        if line["state"] == "done":
            results = row.pop("results")
            mean, error = mean_and_error([result["test"] for result in results])
            row |= {
                "test": mean,
                "standard_error": error,
                "seeds": [result["seed"] for result in results],
                "by_fraction": _by_fraction(results),
                "macro_f1": mean_and_error([result["macro_f1"]["test"] for result in results])[0],
                "classes": results[0]["classes"],
                "clips": results[0]["clips"],
                "cost": results[0]["cost"],
                "runs": [result["run"] for result in results],
            }
        rows.append(row)
    return {
        "encoder": encoder,
        "tasks": rows,
        "average": {
            name: _average([row for row in rows if row["benchmark"] == name])
            for name in dict.fromkeys(task.benchmark for task in tasks)
        },
        "run": out,
    }


def write_report(out: Path, summary: dict[str, Any]) -> None:
    """OUT/lape.json and OUT/lape.md."""
    write_json(out / "lape.json", summary)
    text = "\n\n".join(f"{title}\n\n{markdown(columns, rows)}" for title, columns, rows in tables(summary))
    replace_file(out / "lape.md", "\n\n".join([text, *sentences(summary)]).encode() + b"\n")


def tables(summary: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows of text) for each benchmark, in per cent."""
    found = []
    for benchmark, average in summary["average"].items():
        rows = [row for row in summary["tasks"] if row["benchmark"] == benchmark]
        fractions = sorted({fraction for row in rows for fraction in row.get("by_fraction", {})}, key=float)[:-1]
        few = [f"{100 * float(fraction):g} % of labels" for fraction in fractions]
        papers = list(rows[0]["paper"])
        lines = []
        for row in rows:
            done = row["state"] == "done"
            cells = [_of_fraction(row, fraction) for fraction in fractions]
            ours = _with_error(row["test"], row["standard_error"]) if done else row["state"]
            span = " to ".join(f"{100 * end:.1f}" for end in row["interval"]) if done else ""
            lines.append([row["title"], ours, span, *cells, *(_number(row["paper"][name]) for name in papers)])
        means = [_number(average["paper"][name]) for name in papers]
        ours = "" if average["test"] is None else f"{100 * average['test']:.1f}"
        lines.append([f"average of {average['tasks']}", ours, "", *[""] * len(few), *means])
        measured = f"ours, {summary['encoder']}"
        columns = ["task", measured, "95 % interval", *few, *papers]
        title = (
            f"{benchmark}: test accuracy in %, beside what the paper prints; the average is over the tasks done here"
        )
        found.append((title, columns, lines))
    return found


def sentences(summary: dict[str, Any]) -> list[str]:
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


def _average(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [row for row in rows if row["state"] == "done"]
    columns: dict[str, float | None] = {}
    for name in rows[0]["paper"]:
        numbers = [row["paper"][name] for row in done]
        columns[name] = sum(numbers) / len(numbers) if numbers and None not in numbers else None
    return {
        "tasks": f"{len(done)} of {len(rows)}",
        "test": sum(row["test"] for row in done) / len(done) if done else None,
        "paper": columns,
    }


def _by_fraction(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    found: dict[str, list[float]] = {}
    for result in results:
        for row in result["rows"]:
            found.setdefault(f"{row['label_fraction']:g}", []).append(row["test"])
    spread = {fraction: mean_and_error(tests) for fraction, tests in found.items()}
    return {fraction: {"test": mean, "standard_error": error} for fraction, (mean, error) in spread.items()}


def _of_fraction(row: dict[str, Any], fraction: str) -> str:
    cell = row.get("by_fraction", {}).get(fraction)
    return "" if cell is None else _with_error(cell["test"], cell["standard_error"])


def _with_error(mean: float, error: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
