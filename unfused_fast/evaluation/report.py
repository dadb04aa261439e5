"""Results of runs as one table: on the terminal, as markdown, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import read_json

REPORT_COLUMNS = ("run", "stage", "task", "encoder", "labels", "valid", "test", "macro-F1", "clips", "seed", "seconds")


KINDS: Mapping[str, tuple[type, ...]] = {
    "stage": (str,),
    "task": (str,),
    "encoder": (str,),
    "label_fraction": (int, float),
    "valid": (int, float),
    "test": (int, float),
    "macro_f1": (dict,),
    "clips": (dict,),
    "seed": (int,),
    "seconds": (int, float),
}
"""What a result's entries are."""
NEEDED = ("stage", "seconds")


def _is_kind(result: Mapping[str, Any], name: str) -> bool:
    """Whether an entry of a result is what a table can show."""
    value, inner = result.get(name), (int, float) if name == "macro_f1" else (int,)
    if value is None:
        return name not in NEEDED and (name not in result or dict not in KINDS[name])
    if isinstance(value, dict) and dict in KINDS[name]:
        return all(
            isinstance(item, inner) and not isinstance(item, bool) for item in value.values() if item is not None
        )
    return isinstance(value, KINDS[name]) and not isinstance(value, bool)


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
                result = read_json(file)
            except (OSError, ValueError) as error:
                raise unreadable(file, error, "run the stage again") from error
            if not isinstance(result, dict) or "stage" not in result:
                raise UserError(f"{file}: not the result of a run of unfused-fast; name the run directories one by one")
            if wrong := [name for name in KINDS if not _is_kind(result, name)]:
                raise UserError(f"{file}: its {', '.join(wrong)} is not what a stage writes; run the stage again")
            results.append({**result, "run": str(file.parent)})
    return results


def table_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row of text a result, in the order of REPORT_COLUMNS; what a stage does not measure is empty."""

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
                share(result.get("test")) + (" (held out)" if result.get("held_out") else ""),
                share(macro),
                " / ".join(str(clips[name]) for name in ("train", "valid", "test") if name in clips),
                str(result.get("seed", "")),
                f"{result['seconds']:.1f}",
            ]
        )
    return rows


def held_out_text(holdout: float | None) -> str:
    """What the title of a table says of a held-out test."""
    return "" if holdout is None else f", test held out of train (--holdout {holdout:g})"


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
