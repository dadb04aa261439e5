"""`unfused-fast evaluate`: frozen encoders side by side on a labelled set; part of the command line in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unfused_fast.commands.flags import (
    Data,
    Device,
    Holdout,
    Json,
    Overwrite,
    Preset,
    Seed,
    Sets,
    Shards,
    local_shards,
    print_json,
    run_options,
    stage_config,
    stdout_console,
)
from unfused_fast.config import BASELINES
from unfused_fast.errors import UserError

Fractions = Annotated[
    str,
    typer.Option("--label-fraction", help="Shares of the train labels, between commas, such as 0.01,0.1,1."),
]


def evaluate(
    shards: Shards,
    encoders: Annotated[
        list[str],
        typer.Option(
            "--encoder",
            help="Run directory of pretrain, distill or finetune, or NAME=RUN: runs of one NAME are repetitions of one "
            "encoder. "
            "Repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory for table and predictions.", show_default=False)],
    knn: Annotated[bool, typer.Option("--knn", help="Also k nearest neighbours (--set eval.neighbours=10).")] = False,
    folds: Annotated[bool, typer.Option("--folds", help="Cross-validate over the published folds of the set.")] = False,
    holdout: Holdout = None,
    fractions: Fractions = "1",
    seeds: Annotated[int, typer.Option(help="Repetitions of heads, few labels and the random encoder.")] = 1,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also a random encoder and log-mel means.")
    ] = True,
    preset: Preset = "recommended",
    settings: Sets = None,
    seed: Seed = 0,
    device: Device = "auto",
    data: Data = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare encoders: accuracy or mAP with bootstrap intervals over test recordings and errors over seeds and folds;
    paired bootstrap and McNemar's test of each two. Every prediction is kept.
    """
    named = named_runs(encoders, baselines)
    chosen = fractions_of(fractions)
    from unfused_fast.evaluation import (
        PAIR_COLUMNS,
        TABLE_COLUMNS,
        Plan,
        evaluation_title,
        pair_texts,
        table_texts,
        terminal_table,
    )
    from unfused_fast.evaluation import evaluate as run_evaluation
    from unfused_fast.shards.sets.table import open_shards

    config = stage_config("linear", preset, settings, None, seed, data)
    plan = Plan(("linear", "knn") if knn else ("linear",), chosen, folds, seeds, holdout)
    options = run_options(device, None, False, overwrite)
    result = run_evaluation(config, open_shards(local_shards(shards)), named, plan, out, options)
    if as_json:
        print_json(result)
        return
    printed = stdout_console()
    printed.print(terminal_table(evaluation_title(result), TABLE_COLUMNS, table_texts(result["rows"])))
    if result["select"] == "best_test":
        typer.echo(
            "the linear heads were selected on the test set (eval.select = best_test): these numbers are optimistic"
        )
    if result["comparisons"]:
        printed.print(terminal_table("differences in points", PAIR_COLUMNS, pair_texts(result["comparisons"])))
    typer.echo(f"predictions of every test recording: {out / 'predictions.parquet'}")


def named_runs(given: list[str], baselines: bool) -> dict[str, list[str]]:
    """`NAME=RUN` and `RUN` as name -> runs, the baselines first.

    Raises UserError for a run that is given twice, however its path is written, and for one named as a baseline.
    """
    named: dict[str, list[str]] = {name: [name] for name in BASELINES} if baselines else {}
    places: set[Path] = set()
    for item in given:
        name, sign, run = item.partition("=")
        if not sign or Path(item).exists():
            name = run = item
        if not name or not run:
            raise UserError(f"--encoder {item}: want RUN, or NAME=RUN")
        if name in BASELINES and run != name:
            raise UserError(f"--encoder {item}: {name} is the name of a baseline; give the run another NAME")
        if run in BASELINES:
            if run not in named.get(name, []):
                named.setdefault(name, []).append(run)
            continue
        if (place := Path(run).resolve()) in places:
            raise UserError(f"--encoder {item}: {run} is given twice; name each run once")
        places.add(place)
        named.setdefault(name, []).append(run)
    return named


def fractions_of(given: str) -> tuple[float, ...]:
    """`0.01,0.1,1` -> numbers, each once. Raises UserError for what is no number."""
    try:
        return tuple(dict.fromkeys(float(part) for part in given.split(",")))
    except ValueError:
        raise UserError(f"--label-fraction {given}: want numbers between commas, such as 0.01,0.1,1") from None
