"""`unfused-fast bench`: figures of this machine beside what it could do; part of the command line, cli.py."""

from __future__ import annotations

import csv
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Compile, Device, Json, Preset, Sets
from unfused_fast.commands.output import open_set, print_json, stdout_console
from unfused_fast.errors import UserError, cause

if TYPE_CHECKING:
    from unfused_fast.commands.measure.parts import Measured

COLUMNS = [
    *("part", "what", "unit", "p20", "p50", "p80", "repeats", "floor", "floor_is", "share", "clips", "batch", "device"),
    *("cores", "versions", "commit", "date"),
]
"""Of `--rows`."""
Part = Literal["all", "loader", "views", "step", "kmeans", "bank", "epoch"]


def bench(
    part: Annotated[Part, typer.Argument(help="What to measure.")] = "all",
    shards: Annotated[
        str | None, typer.Argument(help="Shard set to measure on.", show_default="a synthetic one")
    ] = None,
    synthetic: Annotated[int, typer.Option(help="Clips of the synthetic set.", min=16)] = 512,
    seconds: Annotated[float, typer.Option(help="Their length.", min=0.1)] = 10.0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats on smaller data: minutes on a laptop.")] = False,
    rows_file: Annotated[
        Path | None, typer.Option("--rows", help="CSV that the rows are appended to.", show_default="none")
    ] = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    device: Device = "auto",
    compile_: Compile = None,
    as_json: Json = False,
) -> None:
    """How fast each part of training runs here, compared with what this machine could do, measured in the same run."""
    from unfused_fast.commands.flags import run_options, stage_config
    from unfused_fast.commands.measure.machine import circumstances
    from unfused_fast.commands.measure.parts import PARTS, Bench, Measured, limit
    from unfused_fast.commands.measure.synthetic import synthetic_set
    from unfused_fast.console import console

    with ExitStack() as stack:
        config = stage_config("pretrain", preset, settings, None, 0)
        options = run_options(device, compile_, False, False)
        if rows_file is not None:
            _append(rows_file, [])  # before minutes of measuring, not after them
        if shards is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unfused-bench-")))
            shard_set = synthetic_set(folder, synthetic, seconds)
        else:
            shard_set = open_set(shards)
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
    from unfused_fast.commands.measure.machine import spread
    from unfused_fast.evaluation import terminal_table

    lines = []
    for row in found:
        low, median, high = spread(row.values)
        reached = "" if row.share is None else f"{100 * row.share:.0f} %"
        floor = "" if row.floor is None else _figure(row.floor)
        spans = f"{_figure(low)} - {_figure(high)}"
        lines.append([row.part, row.what, _figure(median), spans, row.unit, floor, reached, row.floor_is])
    columns = ["part", "what", "median", "p20 - p80", "unit", "limit", "of it", "limit set by"]
    stdout_console().print(terminal_table(title, columns, lines))


def _figure(value: float) -> str:
    """Four digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a CSV, with a header where it is new. Raises UserError: other columns, or not writable."""
    try:
        with path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            found = next(csv.reader(file), None)
            if found and found != COLUMNS:
                raise ValueError(f"its columns are {','.join(found)[:200]}")
            writer = csv.writer(file)
            if rows and not found:
                writer.writerow(COLUMNS)
            writer.writerows([row[column] for column in COLUMNS] for row in rows)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--rows {path}: no rows can be appended ({cause(error)}); name another file") from error
