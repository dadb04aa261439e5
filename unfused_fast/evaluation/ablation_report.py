"""The table of an ablation: as JSON, markdown, text for a terminal, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unfused_fast.evaluation.report import held_out_text, markdown, mean_and_error
from unfused_fast.models import Cost
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import plot_errors, write_json

ABLATION_COLUMNS = ("settings", "seeds", "valid", "test", "to base", "parameters", "MACs", "seconds", "trouble")


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
    return {
        "stage": varied,
        "task": target.directory.name,
        "metric": "accuracy",
        "holdout": holdout,
        "rows": rows,
        "run": str(out),
    }


def ablation_texts(summary: dict[str, Any]) -> list[list[str]]:
    """The rows as text in the order of ABLATION_COLUMNS, accuracies in per cent with standard errors over seeds."""
    rows = []
    for row in summary["rows"]:
        said = "; ".join(_trouble(row["failed"]))
        seconds = row["seconds"]["mean"]
        rows.append(
            [
                row["settings"],
                str(len(row["seeds"])),
                percent(row["valid"]),
                percent(row["test"]),
                percent(row["difference"], "+"),
                f"{row['parameters']:,}",
                f"{row['macs']:,}",
                "" if seconds is None else f"{seconds:.1f}",
                said or ("waiting" if row["state"] == "waiting" else ""),
            ]
        )
    return rows


def ablation_title(summary: dict[str, Any]) -> str:
    """What the table is of."""
    encoder = "1" if summary["stage"] == "pretrain" else "2"
    held = held_out_text(summary["holdout"])
    return f"{summary['task']}: accuracy in % of stage {encoder}'s encoder, mean ± standard error over seeds{held}"


def percent(spread: dict[str, Any], sign: str = "") -> str:
    """`81.2 ± 0.4`, empty where nothing was measured; `sign` = + shows the sign of a difference."""
    mean, error = spread["mean"], spread["standard_error"]
    if mean is None:
        return ""
    return f"{100 * mean:{sign}.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def write_report(out: Path, summary: dict[str, Any]) -> None:
    """OUT/ablation.json and OUT/ablation.md."""
    write_json(out / "ablation.json", summary)
    text = f"{ablation_title(summary)}\n\n{markdown(ABLATION_COLUMNS, ablation_texts(summary))}\n"
    replace_file(out / "ablation.md", text.encode())


def write_picture(out: Path, summary: dict[str, Any]) -> None:
    """OUT/ablation.png: validation and test accuracy of each cell that finished, bars of one standard error."""
    shown = [row for row in summary["rows"] if row["seeds"]]
    points = {
        name: [
            (100 * spread["mean"], 100 * (spread["standard_error"] or 0.0)) if spread["seeds"] else None
            for spread in (row[name] for row in shown)
        ]
        for name in ("valid", "test")
    }
    if shown:
        plot_errors(
            out / "ablation.png", [row["settings"] for row in shown], points, f"{summary['task']}: accuracy in %"
        )


def _trouble(failed: Sequence[dict[str, Any]]) -> list[str]:
    """`seeds 0, 1: what happened`: a reason up to its advice, which is for single runs; the JSON has all of it."""
    seeds: dict[str, list[str]] = {}
    for one in failed:
        seeds.setdefault(one["reason"].split(";")[0], []).append(str(one["seed"]))
    return [f"seed{'s' if len(those) > 1 else ''} {', '.join(those)}: {reason}" for reason, those in seeds.items()]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of `seeds` values; None where there is none."""
    mean, error = mean_and_error(values) if values else (None, None)
    return {"mean": mean, "standard_error": error, "seeds": len(values), "values": list(values)}
