"""The command line: parse -> config -> one call per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unfused_fast import __version__
from unfused_fast.errors import UserError
from unfused_fast.terminal import (
    Compile,
    Device,
    Json,
    Overwrite,
    Preset,
    Resume,
    Sets,
    Shards,
    bar,
    pairs,
    print_json,
    run_app,
    run_options,
    stdout_console,
)
from unfused_fast.train_commands import train_app

if TYPE_CHECKING:
    from unfused_fast.shards.sources import SourceRow

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
app.add_typer(train_app, name="train")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """UnFuSeD: audio representations from few labels, on one device or many.

    Start with [bold]unfused-fast demo[/], or with your own folder of audio: [bold]unfused-fast shard FOLDER SHARDS[/],
    then [bold]unfused-fast train pretrain SHARDS --out RUN[/].
    """
    if version:
        typer.echo(f"unfused-fast {__version__}")
        raise typer.Exit


@app.command()
def shard(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of audio (any depth), or CSV with columns path[,label,split,group].", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="Shard set to make.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="SOURCE is this data set as its publisher ships it (see --list).")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--option", help="An option of the data set, as key=value; repeatable.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the data sets that --dataset knows, and stop.")] = False,
    labels_from_folders: Annotated[
        bool, typer.Option("--labels-from-folders", help="The first folder's name is the label.")
    ] = False,
    codec: Annotated[
        Literal["wav", "flac"], typer.Option(help="wav is decoded faster, flac takes fewer bytes.")
    ] = "wav",
    max_seconds: Annotated[float, typer.Option(help="Longer files are cut into equal pieces.")] = 10.0,
    min_seconds: Annotated[float, typer.Option(help="Shorter files are rejected.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seeds the global shuffle.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; the result does not depend on it.", show_default="one a core")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pack audio files into a shard set: 16 kHz mono WebDataset tars with DALI indexes, clips table and manifest."""
    if list_:
        _list_datasets(as_json)
        return
    if source is None or out is None:
        lacking = "SOURCE and OUT" if source is None else "OUT"
        raise typer.BadParameter(f"missing {lacking}: unfused-fast shard SOURCE OUT; only --list goes without them")
    from unfused_fast.audio import log_mel_statistics
    from unfused_fast.shards.write import pack

    rows = _rows(source, dataset, options, labels_from_folders)
    with bar("packing") as advance:
        packed = pack(
            rows,
            out,
            codec=codec,
            max_seconds=max_seconds,
            min_seconds=min_seconds,
            seed=seed,
            workers=workers,
            overwrite=overwrite,
            statistics=log_mel_statistics,
            progress=advance,
        )
    splits = {name: split.clips for name, split in packed.shard_set.manifest.splits.items()}
    summary = {
        "out": str(out),
        "clips": packed.packed,
        "splits": splits,
        "labels": len(packed.shard_set.manifest.label_names),
        "rejected": packed.rejected,
        "audio_seconds": round(packed.audio_seconds, 1),
        "bytes": packed.shard_bytes,
        "seconds": round(packed.wall_seconds, 2),
        "clips_per_second": round(packed.packed / packed.wall_seconds, 1),
        "digest": packed.shard_set.manifest.digest,
    }
    if as_json:
        print_json(summary)
        return
    typer.echo(
        f"{out}: {packed.packed} clips ({', '.join(f'{count} {name}' for name, count in splits.items())}), "
        f"{summary['labels']} labels, "
        f"{packed.audio_seconds / 60:.1f} minutes, {packed.shard_bytes / 1e6:.1f} MB in {packed.wall_seconds:.1f} s"
    )
    for reason, count in packed.rejected.items():
        typer.echo(f"  rejected {count}: {reason}")
    if packed.rejected:
        typer.echo(f"  each one is named in {out / 'rejected.csv'}")


def _rows(source: Path, dataset: str | None, options: list[str] | None, labels_from_folders: bool) -> list[SourceRow]:
    """What is to be packed; what a data set's adapter has to say goes to the screen."""
    if dataset is None:
        from unfused_fast.shards.sources import source_rows

        if options:
            raise UserError(f"--option {options[0]}: options belong to a data set; name it with --dataset")
        return source_rows(source, labels_from_folders=labels_from_folders)
    if labels_from_folders:
        raise UserError(
            f"--labels-from-folders with --dataset {dataset}: the data set has its own labels; leave it out"
        )
    from unfused_fast.shards.datasets import dataset_rows
    from unfused_fast.training import console

    found = dataset_rows(dataset, source, pairs(options, "--option", "key=value, see: unfused-fast shard --list"))
    for note in found.notes:
        console.print(f"{dataset}: {note}")
    return found.rows


def _list_datasets(as_json: bool) -> None:
    from unfused_fast.shards.datasets import described, described_as_text

    if as_json:
        print_json(described())
    else:
        typer.echo(described_as_text())


@app.command()
def check(shards: Shards, as_json: Json = False) -> None:
    """Read a shard set from end to end and name every file that is not as it was written."""
    from unfused_fast.shards.check import check as problems_of

    problems = problems_of(shards)
    if as_json:
        print_json({"shards": str(shards), "problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else f"{shards}: all shards are as they were written")
    if problems:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for shards and runs.")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="One seed, two epochs: does everything work here?")] = False,
    seeds: Annotated[int | None, typer.Option(help="Repetitions.", show_default="3")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of pre-training; distillation takes half of it.", show_default="40")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the encoder's blocks; 64 is the paper's.", show_default="16")
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="K of pre-training.", show_default="64")] = None,
    device: Device = "auto",
    compile_: Compile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole system on real recordings that come with it: 800 spoken prompts, 616 instrument notes, one table."""
    from unfused_fast.demo import DemoSize, demo_table, run_demo
    from unfused_fast.report import terminal_table

    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise UserError(
            f"{out}: an earlier demo is there; use --resume to go on, --overwrite to start again, or another --out"
        )
    given = {"seeds": seeds, "epochs": epochs, "width": width, "clusters": clusters}
    base = DemoSize(seeds=1, epochs=2) if quick else DemoSize()
    size = DemoSize(**{name: getattr(base, name) if value is None else value for name, value in given.items()})
    summary = run_demo(out, size, run_options(device, compile_, resume, overwrite))
    if as_json:
        print_json(summary)
        return
    sizes = summary["size"]
    stdout_console().print(
        terminal_table(f"test accuracy in %, mean ± standard error over {sizes['seeds']} seed(s)", *demo_table(summary))
    )
    typer.echo(
        f"encoder width {sizes['width']} (64 is the paper's), K {sizes['k']}, {sizes['epochs']} + "
        f"{sizes['distill_epochs']} epochs, {summary['seconds']:.0f} s"
    )
    typer.echo(f"chance: {', '.join(f'{name} {100 * share:.0f} %' for name, share in summary['chance'].items())}")
    typer.echo(f"runs: {summary['runs']}   curves: {summary['curves']}   confusion matrices: {summary['confusion']}")
    typer.echo("your own audio: unfused-fast shard FOLDER SHARDS, then: unfused-fast train pretrain SHARDS --out RUN")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or directories that hold some.", show_default=False)
    ],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """One table from the result.json files of finished runs."""
    from unfused_fast.report import COLUMNS, collect_results, markdown, table_rows, terminal_table

    results = collect_results(runs)
    if as_json:
        print_json(results)
    elif as_markdown:
        typer.echo(markdown(COLUMNS, table_rows(results)))
    else:
        stdout_console().print(terminal_table("results", COLUMNS, table_rows(results)))


@app.command()
def config(
    stage: Annotated[Literal["pretrain", "distill", "linear"], typer.Option(help="Whose values to show.")] = "pretrain",
    preset: Preset = "recommended",
    settings: Sets = None,
    as_json: Json = False,
) -> None:
    """Every field that --set knows: its value, type, meaning and source."""
    from rich.table import Table

    from unfused_fast.settings import field_texts, flatten, with_values
    from unfused_fast.settings import preset as preset_of

    values = flatten(with_values(preset_of(preset, stage), pairs(settings)))
    if as_json:
        print_json(values)
        return
    table = Table(title=f"stage {stage}, preset {preset}", title_justify="left", show_lines=True)
    for column, width in (("field", 24), ("value", 18), ("type", 26), ("meaning and source", None)):
        table.add_column(column, overflow="fold", max_width=width)
    for name, value in values.items():
        table.add_row(name, str(value), *field_texts()[name])
    stdout_console().print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed here, what every `auto` means, what to install for more; exit code 1 when training cannot
    run.
    """
    from unfused_fast.doctor import examine
    from unfused_fast.report import terminal_table

    findings = examine()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [[finding.name, finding.found, "" if finding.works else "NO", finding.note] for finding in findings]
        stdout_console().print(terminal_table("unfused-fast doctor", ["what", "found here", "trouble", "note"], rows))
        typer.echo("ready" if all(finding.works for finding in findings) else "not ready: see the lines marked NO")
    if not all(finding.works for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of `unfused-fast` and `python -m unfused_fast`."""
    run_app(app)


if __name__ == "__main__":
    main()
