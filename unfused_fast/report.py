"""Results of runs as one table: on the terminal, as markdown, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from unfused_fast.errors import UserError

COLUMNS = ("run", "stage", "task", "encoder", "labels", "valid", "test", "macro-F1", "clips", "seed", "seconds")


def collect_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The result.json of each run, and of every run below a directory that is none itself, in order of path."""
    results = []
    for path in paths:
        files = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.rglob("result.json"))
        if not files:
            state = "does not exist" if not path.exists() else "holds no finished run (no result.json)"
            raise UserError(f"{path}: it {state}; give directories that unfused-fast train wrote")
        for file in files:
            try:
                result = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read ({error}); run the stage again") from error
            if not isinstance(result, dict) or "stage" not in result:
                raise UserError(f"{file}: not the result of a run of unfused-fast; name the run directories one by one")
            results.append({**result, "run": str(file.parent)})
    return results


def table_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row of text a result, in the order of COLUMNS; what a stage does not measure is empty."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = []
    for result in results:
        clips, f1 = result.get("clips", {}), result.get("macro_f1", {})
        macro = f1.get("test") if f1.get("test") is not None else f1.get("valid")
        fraction = result.get("label_fraction")
        rows.append(
            [
                result["run"],
                result["stage"],
                str(result.get("task", "")),
                str(result.get("encoder", "")),
                "" if fraction is None else f"{fraction:.0%}",
                share(result.get("valid")),
                share(result.get("test")),
                share(macro),
                " / ".join(str(clips[name]) for name in ("train", "valid", "test") if name in clips),
                str(result.get("seed", "")),
                f"{result['seconds']:.1f}",
            ]
        )
    return rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured table; `|` inside a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def terminal_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The same table for a terminal."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 1 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (sample deviation over root n); no error for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
