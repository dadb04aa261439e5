"""The table of an ablation: as JSON, text, and a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unfused_fast.evaluation.report import TextTable, held_out_text, mean_and_error, percent
from unfused_fast.models import Cost
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import plot_errors

COLUMNS = ("settings", "seeds", "valid", "test", "to base", "parameters", "MACs", "seconds", "trouble")


def summary_of(
    cells: Sequence[tuple[str, dict[str, Any], Cost]],
    found: Sequence[dict[str, Any]],
    varied: str,
    target: ShardSet,
    out: Path,
    holdout: float | None = None,
) -> dict[str, Any]:
    """Cells (name, varied values, cost) and what became of each seed -> the content of ablation.json; shares of 1.

    `difference` is test minus the base's test over the seeds that both finished; None without a cell `base`.
    """
    base = {line["seed"]: line for line in found if line["cell"] == "base" and "runs" in line}
    rows = []
    for name, values, cost in cells:
        lines = [line for line in found if line["cell"] == name]
        done = [line for line in lines if "runs" in line]
        tested = [line for line in done if line["test"] is not None]
        pairs = [
            line["test"] - base[line["seed"]]["test"] for line in tested if name != "base" and line["seed"] in base
        ]
        rows.append(
            {
                "settings": name,
                "values": values,
                "state": "waiting" if not lines else "done" if len(done) == len(lines) else "failed",
                "seeds": [line["seed"] for line in done],
                "valid": _spread([line["valid"] for line in done]),
                "test": _spread([line["test"] for line in tested]),
                "difference": _spread(pairs),
                **asdict(cost),
                "seconds": _spread([line["seconds"] for line in done]),
                "runs": [line["runs"] for line in done],
                "failed": [{"seed": line["seed"], "reason": line["reason"]} for line in lines if "reason" in line],
            }
        )
    facts = {"stage": varied, "task": target.directory.name, "metric": "accuracy", "holdout": holdout}
    return {**facts, "rows": rows, "run": str(out)}


def ablation_table(summary: Mapping[str, Any]) -> TextTable:
    """The rows as text, accuracies in per cent with standard errors over seeds."""
    encoder, held = "1" if summary["stage"] == "pretrain" else "2", held_out_text(summary["holdout"])
    title = f"{summary['task']}: accuracy in % of stage {encoder}'s encoder, mean ± standard error over seeds{held}"
    rows = []
    for row in summary["rows"]:
        seconds = row["seconds"]["mean"]
        valid, test, difference = (row[name] for name in ("valid", "test", "difference"))
        rows.append(
            [
                row["settings"],
                str(len(row["seeds"])),
                percent(valid["mean"], valid["standard_error"]),
                percent(test["mean"], test["standard_error"]),
                percent(difference["mean"], difference["standard_error"], "+"),
                f"{row['parameters']:,}",
                f"{row['macs']:,}",
                "" if seconds is None else f"{seconds:.1f}",
                _trouble(row["failed"]) or ("waiting" if row["state"] == "waiting" else ""),
            ]
        )
    return title, COLUMNS, rows


def write_picture(out: Path, summary: Mapping[str, Any]) -> None:
    """OUT/ablation.png: validation and test accuracy of each cell that finished, bars of one standard error."""
    shown = [row for row in summary["rows"] if row["seeds"]]
    points = {
        name: [
            (100 * row[name]["mean"], 100 * (row[name]["standard_error"] or 0.0)) if row[name]["seeds"] else None
            for row in shown
        ]
        for name in ("valid", "test")
    }
    if shown:
        names, title = [row["settings"] for row in shown], f"{summary['task']}: accuracy in %"
        plot_errors(out / "ablation.png", names, points, title)


def _trouble(failed: Sequence[dict[str, Any]]) -> str:
    """`seeds 0, 1: what happened`: a reason up to its advice, which is for single runs; the JSON has all of it."""
    seeds = defaultdict[str, list[str]](list)
    for one in failed:
        seeds[one["reason"].split(";")[0]].append(str(one["seed"]))
    return "; ".join(f"seed{'s'[: len(of) - 1]} {', '.join(of)}: {reason}" for reason, of in seeds.items())


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of `seeds` values; None where there is none."""
    mean, error = mean_and_error(values) if values else (None, None)
    return {"mean": mean, "standard_error": error, "seeds": len(values), "values": list(values)}
