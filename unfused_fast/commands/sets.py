"""`unfused-fast check` and `peek`: what is in a shard set, what is wrong with it; part of the command line, cli.py."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unfused_fast.commands.flags import Json, Shards
from unfused_fast.commands.output import bar, local_shards, print_json, stdout_console
from unfused_fast.errors import escaped


def check(
    shards: Shards,
    every_clip: Annotated[
        bool,
        typer.Option(
            "--every-clip",
            help="Decode and measure every clip, not a sample of some 250.",
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one a core", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Read a shard set from end to end and name every file that is not as it was written; exit code 1 if there is one.

    Warnings name what may spoil training: leaks, duplicates, labels, clipping, silence, DC offset, a narrow band.
    """
    from unfused_fast.shards.check.check import check as checked
    from unfused_fast.shards.sets.table import MANIFEST, read_manifest
    from unfused_fast.shards.sources.location import display_name

    started, folder = time.perf_counter(), local_shards(shards)
    if not (folder / MANIFEST).exists():
        read_manifest(folder)  # says what is there instead
    with bar("checking", "damaged") as advance:
        found = checked(folder, every_clip=every_clip, workers=workers, progress=advance)
    if as_json:
        print_json(
            {
                "shards": display_name(shards),
                "clips": found.clips,
                "corrupt": [asdict(finding) for finding in found.corrupt],
                "warnings": [asdict(finding) for finding in found.warnings],
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    else:
        for finding in found.corrupt:
            print(escaped(finding.message))
        for finding in found.warnings:
            print(escaped(f"warning: {finding.message}"))
        if not found.corrupt:
            print(f"{display_name(shards)}: all shards are as they were written, {found.clips} clips")
    if found.corrupt:
        raise typer.Exit(1)


def peek(
    shards: Shards,
    out: Annotated[Path, typer.Option(help="PNG sheet of log-mels to write.")] = Path("peek.png"),
    play_to: Annotated[
        Path | None, typer.Option(help="Folder for the same clips as WAV.", show_default="none are written")
    ] = None,
    examples: Annotated[int, typer.Option(help="Clips of a class.", min=1, max=10)] = 3,
    as_json: Json = False,
) -> None:
    """What is in a shard set: splits, labels, lengths, and a sheet of log-mels to look at."""
    from unfused_fast.commands.peek import contents, examples_of, write_clips, write_sheet
    from unfused_fast.evaluation import terminal_table
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.shards.sources.location import display_name

    shard_set = open_shards(local_shards(shards))
    name, table = display_name(shards), contents(shard_set)
    chosen = examples_of(shard_set, examples)
    write_sheet(out, chosen, f"{name}: log-mel of {len(chosen)} clips")
    written = [] if play_to is None else write_clips(play_to, chosen)
    if as_json:
        print_json({"shards": name, "contents": table, "sheet": str(out), "clips": [str(path) for path in written]})
        return
    columns = ("split", "label", "clips", "seconds", "shortest", "median", "longest")
    rows = [[cell if isinstance(cell := row[name], str) else f"{cell:,.6g}" for name in columns] for row in table]
    stdout_console().print(terminal_table(name, columns, rows))
    print(f"log-mels of {len(chosen)} clips: {out}")
    if play_to is not None:
        print(f"{len(written)} clips to listen to: {play_to}")
