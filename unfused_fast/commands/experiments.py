"""`unfused-fast compare` and `ablate`: many runs and one table; part of the command line in cli.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from unfused_fast.commands.evaluate import SharedTableFlags, TableFlags
from unfused_fast.commands.flags import Compile, Method, Shards, with_flags
from unfused_fast.commands.options import pairs, run_options
from unfused_fast.commands.output import open_set, show
from unfused_fast.config import MethodName, Stage
from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from unfused_fast.config import Config


@with_flags(SharedTableFlags)
def compare(
    shards: Shards,
    sets: Annotated[
        list[str],
        typer.Option(
            "--tasks",
            help="A labelled shard set; the name of its folder is the name of the task. Repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory for runs and the tables.", show_default=False)],
    flags: SharedTableFlags,
    methods: Annotated[
        str, typer.Option(help=f"Names separated by commas, or all: {', '.join(get_args(MethodName))}.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each method.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over SHARDS for each method.", show_default="100")
    ] = None,
    compile_: Compile = None,
) -> None:
    """Find the method that learns best on your clips: one table, one picture.

    Each method is pre-trained on SHARDS, and its encoder is evaluated on every task, beside log-mels and a random
    encoder. All methods see the same clips equally often, through the same front end and encoder; other settings are
    the method's own. After a stop at any moment the same command continues; with more methods, tasks or seeds it adds
    to what is there. The tables show what the command names. A method that diverges or does not fit the set is a line
    of the table. A --set goes to the methods that read it. Several processes train and evaluate each method together.
    """
    from unfused_fast.config import chosen_methods

    names = chosen_methods(methods)
    first = flags.read_by(names[0], names).config("pretrain", several=True, method=names[0])
    flags.start_processes(partitions=first.data.partitions)
    from unfused_fast.evaluation import RunPool, comparison_sentences, comparison_tables, continuing
    from unfused_fast.evaluation import compare as run_comparison

    configs, linear = flags.methods(names, epochs)
    options = run_options(flags.device, compile_, False, False, timeout=flags.timeout)
    pool = RunPool(out / "runs", options, flags.holdout)
    with continuing(out, options), options.ranks:
        opened, tasks = open_set(shards), [open_set(task) for task in sets]
        summary = run_comparison(configs, linear, opened, tasks, out, seeds, pool)
    if not options.ranks.leads:
        return
    places = f"tables and picture: {out / 'compare.md'}, {out / 'compare.png'}"
    show(summary, flags.as_json, comparison_tables(summary), [*comparison_sentences(summary), places])
    if not any(row["seeds"] for row in summary["rows"] if row["encoder"] in configs):
        raise typer.Exit(1)


@with_flags(TableFlags)
def ablate(
    shards: Shards,
    out: Annotated[Path, typer.Option("--out", help="Directory for runs and the table.", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            help="A setting and its values, section.field=v1,v2; separate values by semicolons where they contain "
            "commas. Repeatable (see: unfused-fast config).",
            show_default=False,
        ),
    ],
    flags: TableFlags,
    target: Annotated[
        str | None, typer.Option(help="Labelled shard set for stages 2 and 3.", show_default="SHARDS")
    ] = None,
    stage: Annotated[
        Literal["pretrain", "distill", "linear", "all"],
        typer.Option(
            help="Which stage gets the values: pretrain (whose encoder is then evaluated), distill, linear, or all "
            "stages that read the field."
        ),
    ] = "all",
    method: Method = None,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid/--one-at-a-time",
            help="Try every combination of the values; or the preset first, then each value alone.",
        ),
    ] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each combination.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs of pre-training; where given, distillation has half as many.", show_default="preset's"
        ),
    ] = None,
    compile_: Compile = None,
) -> None:
    """Measure the effect of settings: train and evaluate with each value.

    One table shows the scores with errors over seeds, of what the command names. After a stop at any moment the same
    command continues; with more values or seeds it adds runs to those that are there. A combination that diverges is a
    line of the table.
    """
    half = None if epochs is None else max(1, epochs // 2)
    stages: dict[Stage, int | None] = {"pretrain": epochs, "distill": half, "linear": None}
    configs: Mapping[Stage, Config] = {
        name: flags.config(name, count, several=True, method=method) for name, count in stages.items()
    }
    values = varied_values(vary)
    from unfused_fast.evaluation import RunPool, ablation_sentences, ablation_table, cells_of, continuing
    from unfused_fast.evaluation import ablate as run_ablation

    cells = cells_of(configs, stage, values, not grid)
    trained_on, evaluated_on = open_set(shards), open_set(target or shards)
    pool = RunPool(out / "runs", run_options(flags.device, compile_, False, False), flags.holdout)
    with continuing(out, pool.options):
        summary = run_ablation(cells, stage, trained_on, evaluated_on, out, seeds, pool)
    places = f"table and picture: {out / 'ablation.md'}, {out / 'ablation.png'}"
    show(summary, flags.as_json, [ablation_table(summary)], [*ablation_sentences(summary), places])
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
