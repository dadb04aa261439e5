"""`unfused-fast ablate`: what a few fields are worth; part of the command line in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unfused_fast.commands.flags import (
    Compile,
    Data,
    Device,
    Holdout,
    Json,
    Preset,
    Seed,
    Sets,
    Shards,
    local_shards,
    pairs,
    print_json,
    run_options,
    stage_config,
    stdout_console,
)
from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from unfused_fast.config import Config, Stage


def ablate(
    shards: Shards,
    out: Annotated[Path, typer.Option("--out", help="Directory for runs and the table.", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            help="A config field and values between commas, section.field=v1,v2; between semicolons where a value has "
            "commas itself. Repeatable (see: unfused-fast config).",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="Labelled shard set for stages 2 and 3.", show_default="SHARDS")
    ] = None,
    stage: Annotated[
        Literal["pretrain", "distill", "linear", "all"],
        typer.Option(
            help="Which stage gets the values: pretrain (then its own encoder is evaluated), distill, linear, or all "
            "that read the field."
        ),
    ] = "all",
    grid: Annotated[
        bool,
        typer.Option(
            "--grid/--one-at-a-time",
            help="Every combination of the values; or the preset's, then each value alone beside it.",
        ),
    ] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each cell.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Pre-training epochs; distillation runs half as many.", show_default="preset's")
    ] = None,
    holdout: Holdout = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    seed: Seed = 0,
    device: Device = "auto",
    data: Data = None,
    compile_: Compile = None,
    as_json: Json = False,
) -> None:
    """What fields are worth: trains and evaluates with each of their values, one table with errors over seeds.

    Stopped at any moment, the same command goes on; with more values or seeds it adds to what is there. A cell that
    diverges is a line of the table.
    """
    half = None if epochs is None else max(1, epochs // 2)
    stages: dict[Stage, int | None] = {"pretrain": epochs, "distill": half, "linear": None}
    configs: dict[Stage, Config] = {
        name: stage_config(name, preset, settings, count, seed, data) for name, count in stages.items()
    }
    values = varied_values(vary)
    from unfused_fast.evaluation import ABLATION_COLUMNS, ablation_texts, ablation_title, cells_of, terminal_table
    from unfused_fast.evaluation import ablate as run_ablation
    from unfused_fast.shards.sets.table import open_shards

    cells = cells_of(configs, stage, values, not grid)
    trained_on = open_shards(local_shards(shards))
    evaluated_on = trained_on if target is None else open_shards(local_shards(target))
    options = run_options(device, compile_, False, False)
    summary = run_ablation(cells, stage, trained_on, evaluated_on, out, seeds, options, holdout=holdout)
    if as_json:
        print_json(summary)
    else:
        stdout_console().print(terminal_table(ablation_title(summary), ABLATION_COLUMNS, ablation_texts(summary)))
        typer.echo(f"table and picture: {out / 'ablation.md'}, {out / 'ablation.png'}")
    if not any(row["seeds"] for row in summary["rows"]):
        raise typer.Exit(1)


def varied_values(given: list[str]) -> dict[str, list[str]]:
    """`FIELD=v1,v2` flags as field -> values, as text. Raises UserError for one without values, or given twice."""
    values: dict[str, list[str]] = {}
    for item in given:
        wanted = "section.field=value,value, for example --vary cluster.k=256,512,1024 (see: unfused-fast config)"
        ((name, text),) = pairs([item], "--vary", wanted).items()
        parts = [part.strip() for part in text.split(";" if ";" in text else ",")]
        if not all(parts):
            raise UserError(f"--vary {item}: a value is empty; want {wanted}")
        if name in values:
            raise UserError(f"--vary {name} is given twice; put all its values into one, between commas")
        values[name] = parts
    return values
