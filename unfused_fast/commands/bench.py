"""`unfused-fast bench`: figures of this machine beside what it could do; part of the command line, cli.py."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Compile, Device, Json, Preset, Sets, local_shards, print_json, stdout_console
from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from unfused_fast.commands.benchmarks import Measured

Part = Literal["all", "loader", "views", "step", "kmeans", "bank", "epoch"]


def bench(
    part: Annotated[Part, typer.Argument(help="What to measure.")] = "all",
    shards: Annotated[
        str | None, typer.Argument(help="Shard set to measure on.", show_default="a synthetic one")
    ] = None,
    synthetic: Annotated[int, typer.Option(help="Clips of the synthetic set.", min=16)] = 512,
    seconds: Annotated[float, typer.Option(help="Their length.", min=0.1)] = 10.0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats on smaller data: minutes on a laptop.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two files that --json made: measure nothing, put them side by side.", show_default=False),
    ] = None,
    rows_file: Annotated[
        Path | None, typer.Option("--rows", help="CSV that the rows are appended to.", show_default="none")
    ] = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    device: Device = "auto",
    compile_: Compile = None,
    as_json: Json = False,
) -> None:
    """How fast each part of training runs here, beside what this machine could do, measured in the same run."""
    if compare is not None:
        _compare(*compare, as_json)
        return
    from unfused_fast.commands.benchmarks import PARTS, Bench, Measured, limit
    from unfused_fast.commands.flags import run_options, stage_config
    from unfused_fast.commands.measuring import circumstances
    from unfused_fast.commands.synthetic import synthetic_set
    from unfused_fast.console import console
    from unfused_fast.shards.sets.table import open_shards

    with ExitStack() as stack:
        config = stage_config("pretrain", preset, settings, None, 0)
        options = run_options(device, compile_, False, False)
        if rows_file is not None:
            empty = Measured("", "", "", [0.0]).as_json(clips=0, batch=0, **circumstances(options.device))
            _check_rows_file(rows_file, list(empty))
        if shards is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unfused-bench-")))
            shard_set = synthetic_set(folder, synthetic, seconds)
        else:
            shard_set = open_shards(local_shards(shards))
        measured = Bench(shard_set, config, options, quick)
        found = list[Measured]()
        for name in PARTS if part == "all" else [part]:
            with console.status(f"measuring {name}"):
                found += PARTS[name](measured)
        about = {"clips": measured.clips, "batch": measured.batch_size, **circumstances(options.device)}
    rows = [row.as_json(**about) for row in found]
    if rows_file is not None and rows:
        _append(rows_file, rows)
    sentence = limit(found)
    if as_json:
        print_json({"rows": rows, "limit": sentence})
        return
    _print(found, f"{about['device']}, {about['cores']} cores; {about['versions']}")
    if sentence is not None:
        print(sentence)
    if rows_file is not None:
        print(f"{len(rows)} rows appended to {rows_file}")


def _print(found: list[Measured], title: str) -> None:
    from unfused_fast.commands.measuring import spread
    from unfused_fast.evaluation import terminal_table

    lines = []
    for row in found:
        low, median, high = spread(row.values)
        reached = "" if row.share is None else f"{100 * row.share:.0f} %"
        floor = "" if row.floor is None else _figure(row.floor)
        spans = f"{_figure(low)} - {_figure(high)}"
        lines.append([row.part, row.what, _figure(median), spans, row.unit, floor, reached, row.floor_is])
    columns = ["part", "what", "median", "p20 - p80", "unit", "floor", "reached", "the floor is"]
    stdout_console().print(terminal_table(title, columns, lines))


def _figure(value: float) -> str:
    """Four digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _check_rows_file(path: Path, columns: list[str]) -> None:
    """Raises UserError unless rows can be appended: before minutes of measuring, not after them."""
    if not path.parent.is_dir():
        raise UserError(f"--rows {path}: {path.parent} is no folder; make it, or name a file in another")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--rows {path}: it cannot be written to; name another file")
    found = _header(path)
    if found and found != columns:
        raise UserError(
            f"--rows {path}: its header is {','.join(found)[:200]!r}, but rows of this version have "
            f"{','.join(columns)!r}; name another file"
        )


def _header(path: Path) -> list[str]:
    """Columns of a CSV; none where there is no file, or an empty one."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--rows {path}: not a CSV file ({error}); name another file") from error


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not _header(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {(row["part"], row["what"]): row for row in rows if row["p50"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no rows of a bench in it ({error}); make it with: bench --json > FILE") from error


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from unfused_fast.evaluation import terminal_table

    one, other = _read(first), _read(second)
    both = [name for name in one if name in other]
    if not both:
        raise UserError(f"{first} and {second}: no part was measured in both; name two files of the same parts")
    rows = []
    for name in both:
        before, after = one[name]["p50"], other[name]["p50"]
        rows.append({"part": name[0], "what": name[1], "unit": one[name]["unit"], "first": before, "second": after})
        rows[-1]["ratio"] = round(after / before, 4) if before else None
    if as_json:
        print_json({"first": str(first), "second": str(second), "rows": rows})
        return
    columns = ["part", "what", "unit", "first", "second", "ratio"]
    stdout_console().print(
        terminal_table(f"{first} -> {second}", columns, [[str(row[key]) for key in columns] for row in rows])
    )
