"""`unfused-fast tasks` and `lape`: the papers' tasks, listed and run; part of the command line in cli.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from unfused_fast.commands.evaluate import Fractions, fractions_of
from unfused_fast.commands.flags import (
    Compile,
    Data,
    Device,
    Holdout,
    Json,
    Overwrite,
    Preset,
    Seed,
    Sets,
    pairs,
    print_json,
    run_options,
    stage_config,
    stdout_console,
)


def tasks(as_json: Json = False) -> None:
    """The papers' tasks: data set, labels, split, and the numbers that the papers print."""
    from unfused_fast.config import DECAR_TASKS, LAPE_TASKS, TASKS
    from unfused_fast.evaluation import terminal_table

    if as_json:
        print_json([asdict(task) for task in TASKS.values()])
        return
    columns = ["name", "title", "data set", "classes", "seconds", "split"]
    printed = stdout_console()
    for title, listed in (("LAPE, by UnFuSeD Table 1", LAPE_TASKS), ("DECAR, Tables 1 to 3", DECAR_TASKS)):
        rows = []
        for task in listed:
            options = "".join(f" {key}={value}" for key, value in task.options.items())
            rows.append(
                [task.name, task.title, task.dataset + options, f"{task.classes:,}", f"{task.seconds:g}", task.split]
            )
        printed.print(terminal_table(title, columns, rows))
        names = list(listed[0].results)
        numbers = [
            [task.title, *("" if value is None else f"{value:.1f}" for value in task.results.values())]
            for task in listed
        ]
        printed.print(terminal_table("accuracy in %, as printed", ["task", *names], numbers))
        for task in listed:
            if task.unclear:
                typer.echo(f"{task.name}: {task.unclear}")


def lape(
    data_dir: Annotated[
        Path,
        typer.Argument(help="Holds the data sets, each a shard set or as its publisher ships it.", show_default=False),
    ],
    teacher: Annotated[Path, typer.Option(help="Run directory of train pretrain.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Directory for sets, runs and the table.", show_default=False)],
    names: Annotated[
        str | None,
        typer.Option("--tasks", help="Names between commas (see: unfused-fast tasks).", show_default="LAPE's eleven"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of stages 2 and 3.")] = 1,
    encoder: Annotated[
        Literal["full", "student3"],
        typer.Option(help="The whole distilled encoder, or its first three blocks, the paper's student."),
    ] = "full",
    fractions: Fractions = "1",
    holdout: Holdout = None,
    epochs: Annotated[int | None, typer.Option(help="Of distillation.", show_default="preset's")] = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    seed: Seed = 0,
    device: Device = "auto",
    data: Data = None,
    compile_: Compile = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that pack.", show_default="one a core")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The LAPE benchmark: distil and evaluate on every task whose data are here, one table beside the paper's.

    Stopped at any moment, the same command goes on where it was. Stage 2 sees crops of each task's own seconds, but
    for --preset authors or --set data.crop_seconds.
    """
    from unfused_fast.config import chosen_tasks
    from unfused_fast.evaluation import LapePlan, Plan, sentences, tables, terminal_table
    from unfused_fast.evaluation import lape as run_lape

    chosen = chosen_tasks(names)
    shares = Plan(fractions=fractions_of(fractions)).fractions
    evaluated = [*(settings or []), f"eval.encoder={encoder}"]
    plan = LapePlan(
        stage_config("distill", preset, settings, epochs, seed, data),
        stage_config("linear", preset, evaluated, None, seed, data),
        shares,
        seeds,
        holdout,
        preset != "authors" and "data.crop_seconds" not in pairs(settings),
    )
    summary = run_lape(data_dir, teacher, out, chosen, plan, run_options(device, compile_, False, overwrite), workers)
    if as_json:
        print_json(summary)
        return
    for title, columns, rows in tables(summary):
        stdout_console().print(terminal_table(title, columns, rows))
    for sentence in sentences(summary):
        typer.echo(sentence)
