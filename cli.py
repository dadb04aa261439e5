"""The command line: parse -> config -> one call per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import inspect
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from unfused_fast import __version__
from unfused_fast.checkout import commit
from unfused_fast.commands.bench import bench, plan
from unfused_fast.commands.encoders import embed, export, import_
from unfused_fast.commands.evaluate import evaluate, lape, tasks
from unfused_fast.commands.exits import run_app
from unfused_fast.commands.experiments import ablate, compare
from unfused_fast.commands.explore import explore, similar
from unfused_fast.commands.flags import Compile, ConfigFile, Device, Json, Method, Overwrite, Preset, Resume, Sets
from unfused_fast.commands.inspect import bank_app, check, clusters, peek
from unfused_fast.commands.options import run_options, stage_config
from unfused_fast.commands.output import print_json, show, stdout_console
from unfused_fast.commands.shard import merge, shard
from unfused_fast.commands.train import train_app
from unfused_fast.config import PresetName, Stage
from unfused_fast.errors import UserError
from unfused_fast.launch import STOPPING, set_handler

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
DATA, TRAIN, USE, HERE = "Data", "Training", "Evaluate and use", "This machine"
"""Panels of --help."""
for panel, commands in {
    DATA: (shard, merge, check, peek),
    TRAIN: (clusters, compare, ablate),
    USE: (evaluate, lape, tasks, embed, explore, similar, export),
    HERE: (bench, plan),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command("import", rich_help_panel=USE)(import_)
app.add_typer(train_app, name="train", rich_help_panel=TRAIN)
app.add_typer(bank_app, name="bank", rich_help_panel=TRAIN)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and its commit, and stop.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Train audio encoders without labels (UnFuSeD and nine other methods), and use them.

    Pack your audio: [bold]unfused-fast shard FOLDER SHARDS[/]

    See and hear it: [bold]unfused-fast explore SHARDS --out PAGE --serve[/]

    Learn from it: [bold]unfused-fast train pretrain SHARDS --out RUN[/]
    """
    if version:
        print(f"unfused-fast {__version__} (commit {commit()})")
        raise typer.Exit


@app.command(rich_help_panel=HERE)
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for shards and runs.")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="Smoke test: one seed, two epochs.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Repetitions.", min=1, show_default="3")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Pre-training epochs; distillation runs half as many.", min=1, show_default="40")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the encoder's blocks; 64 is the paper's.", min=1, show_default="16")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(help="Number of clusters K of pre-training.", min=1, show_default="64")
    ] = None,
    device: Device = "auto",
    compile_: Compile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run all three stages on the recordings in this package, and print one table.

    They are 800 spoken prompts and 616 instrument notes.
    """
    from unfused_fast.commands.demo import DemoSize, demo_table, run_demo
    from unfused_fast.console import counted

    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise UserError(
            f"{out}: it is not empty; continue a demo there with --resume, replace it with --overwrite, or use another "
            "--out"
        )
    given = {"seeds": seeds, "epochs": epochs, "width": width, "clusters": clusters}
    base = DemoSize(seeds=1, epochs=2) if quick else DemoSize()
    size = replace(base, **{name: value for name, value in given.items() if value is not None})
    summary = run_demo(out, size, run_options(device, compile_, resume, overwrite))
    sizes = summary["size"]
    title = f"test accuracy in %, mean ± standard error over {counted(sizes['seeds'], 'seed')}"
    sentences = [
        f"encoder width {sizes['width']} (64 is the paper's), K {sizes['k']}, {sizes['epochs']} + "
        f"{counted(sizes['distill_epochs'], 'epoch')}, {summary['seconds']:.0f} s",
        f"chance: {', '.join(f'{name} {100 * share:.0f} %' for name, share in summary['chance'].items())}",
        f"runs: {summary['runs']}   curves: {summary['curves']}   confusion matrices: {summary['confusion']}",
        "your own audio: unfused-fast shard FOLDER SHARDS, then: unfused-fast train pretrain SHARDS --out RUN",
    ]
    show(summary, as_json, [(title, *demo_table(summary))], sentences)


@app.command(rich_help_panel=USE)
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders that contain some.", show_default=False)
    ],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a markdown table.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Also write an HTML file with scores and intervals, curves, confusion matrices, settings that differ, "
            "and versions; a file of that name is replaced.",
            show_default="none is written",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print one table of the results of finished runs."""
    from unfused_fast.evaluation import REPORT_COLUMNS, collect_results, markdown, table_rows, write_report_page

    results = collect_results(runs)
    if html is not None:
        write_report_page(html, results)
    rows = table_rows(results)
    if as_markdown and not as_json:
        print(markdown(REPORT_COLUMNS, rows))
    else:
        show(results, as_json, [("results", REPORT_COLUMNS, rows)])


@app.command(rich_help_panel=TRAIN)
def config(
    fields: Annotated[
        list[str] | None,
        typer.Argument(help="Sections or fields to show, such as cluster or cluster.k.", show_default="all"),
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Stage whose settings to show.", show_default="pretrain; with --diff all")
    ] = None,
    preset: Preset = "recommended",
    method: Method = None,
    diff: Annotated[
        PresetName | None,
        typer.Option(help="Show only the fields that differ from this preset's, and why.", show_default=False),
    ] = None,
    config_file: ConfigFile = None,
    settings: Sets = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the settings as a file for --config.")] = False,
    as_json: Json = False,
) -> None:
    """Show every setting: its value, type, meaning and source.

    --diff shows where two presets differ. --method shows the settings that a method reads in pre-training, with its
    values; with --diff they are compared with those of decar-v2.
    """
    from rich.table import Table

    from unfused_fast.config import READ_BY, chosen_fields, differences, field_texts, flatten, read_settings
    from unfused_fast.config import as_yaml as in_yaml
    from unfused_fast.config import preset as preset_of

    wanted, file = chosen_fields(fields or []), None if config_file is None else (config_file, diff is not None)
    if config_file is not None and diff is None:
        stage = stage or read_settings(config_file).stage
    if as_yaml and (diff is not None or as_json):
        raise UserError(f"--yaml prints settings as a file; leave {'--json' if as_json else '--diff'} out")
    if method is not None:
        if stage not in (None, "pretrain"):
            raise UserError(f"--stage {stage}: a method is of pre-training only; leave --method or --stage out")
        stage = "pretrain"
        if not fields:
            wanted -= {name for name, readers in READ_BY.items() if method not in readers}
    result: Any
    if diff is not None:
        left: str = preset if method is None else f"{method} {preset}"
        right: str = diff if method is None else f"{preset_of(diff, 'pretrain').method.name} {diff}"
        left = left if left != right else "--set"
        title = f"{left} beside {right}"
        result = lines = [
            {"stage": name, "field": found.field, left: found.values[0], right: found.values[1], "why": found.why}
            for name in ((stage,) if stage else get_args(Stage))
            for found in differences(
                stage_config(name, preset, settings, None, None, method, file), preset_of(diff, name)
            )
            if found.field in wanted
        ]
    else:
        stage = stage or "pretrain"
        values, texts = flatten(stage_config(stage, preset, settings, None, None, method, file)), field_texts()
        title = f"stage {stage}, preset {preset}" + (f", method {method}" if method else "")
        result = {name: value for name, value in values.items() if name in wanted}
        lines = [
            {"field": name, "value": value, "type": texts[name][0], "meaning and source": texts[name][1]}
            for name, value in result.items()
        ]
    if as_yaml:
        print(in_yaml(result, stage or "pretrain"), end="")
        return
    if as_json:
        print_json(result)
        return
    if not lines:
        print(f"{title}: no field differs")
        return
    table = Table(title=title, title_justify="left", show_lines=True)  # the last column has long texts
    for column in lines[0]:
        table.add_column(column, overflow="fold", max_width=None if column == list(lines[0])[-1] else 26)
    for line in lines:
        table.add_row(*map(str, line.values()))
    stdout_console().print(table)


@app.command(rich_help_panel=HERE)
def doctor(as_json: Json = False) -> None:
    """Show what is installed, what each `auto` means here, what is missing.

    The exit code is 1 when training cannot run.
    """
    from unfused_fast.commands.doctor import examine

    findings = examine()
    ready = all(finding.works for finding in findings)
    rows = [[finding.name, finding.found, "" if finding.works else "NO", finding.note] for finding in findings]
    table = "unfused-fast doctor", ["what", "found here", "trouble", "note"], rows
    sentence = "ready" if ready else "not ready: see the lines marked NO"
    show([finding._asdict() for finding in findings], as_json, [table], [sentence])
    if not ready:
        raise typer.Exit(1)


for group in (app, *filter(None, (found.typer_instance for found in app.registered_groups))):
    for info in group.registered_commands:  # typer keeps the line ends of a docstring's paragraph in --help
        paragraphs = (info.help or inspect.getdoc(info.callback) or "").split("\n\n")
        info.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """Entry point of `unfused-fast` and `python -m unfused_fast`. The signals of STOPPING end a command as Ctrl-C does;
    once it has ended they are ignored: only threads and libraries are still ending, and the exit code stays.
    """
    set_handler(signal.default_int_handler, {*STOPPING} - {signal.SIGINT})
    try:
        run_app(app)
    finally:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
