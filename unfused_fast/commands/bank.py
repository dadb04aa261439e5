"""`unfused-fast bank ...`: what is in a memory bank, and its rows for other programs; part of cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unfused_fast.commands.flags import Json
from unfused_fast.commands.output import bar, local_shards, print_json, stdout_console
from unfused_fast.errors import escaped

bank_app = typer.Typer(no_args_is_help=True, help="Look into the memory bank of a run, or hand it to other programs.")

Bank = Annotated[
    Path, typer.Argument(help="A run of train pretrain, its bank.zarr, or a generation in there.", show_default=False)
]


@bank_app.command("info")
def bank_info(
    bank: Bank,
    verify: Annotated[bool, typer.Option("--verify", help="Read all rows and compare with their checksums.")] = False,
    as_json: Json = False,
) -> None:
    """Generations, their epochs, sizes and norms; exit code 1 when one is damaged."""
    from unfused_fast.clustering import DamagedBank, Generation, generation_paths

    found: list[dict[str, Any]] = []
    for path in generation_paths(bank):
        try:
            generation = Generation(path)
        except DamagedBank as error:
            found.append({"generation": str(path), "damaged": [error.fact]})
            continue
        damaged: list[str] = []
        if verify:
            with bar(path.name, "damaged") as advance:
                for done, fact in enumerate(generation.verify(), 1):
                    damaged += [] if fact is None else [fact]
                    advance(done, sum(1 for _ in generation.manifest.files()), len(damaged))
        found.append({"generation": str(path), **generation.describe(), "verified": verify, "damaged": damaged})
    facts = [fact for item in found for fact in item["damaged"]]
    if as_json:
        print_json({"bank": str(bank), "generations": found})
    else:
        _print_table(bank, found)
        for fact in facts:
            print(escaped(fact))
    if facts:
        raise typer.Exit(1)


@bank_app.command("export")
def bank_export(
    bank: Bank,
    out: Annotated[
        Path,
        typer.Option(
            help="What to write: .npz, .parquet, or a folder without an ending for TensorBoard's projector.",
            show_default=False,
        ),
    ],
    epoch: Annotated[int | None, typer.Option(help="Epoch of the generation.", show_default="newest")] = None,
    shards: Annotated[
        str | None, typer.Option(help="The run's shard set: adds split, label and source.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write rows, assignments and clip ids as npz, as parquet, or for TensorBoard's projector."""
    from unfused_fast.clustering import export, format_of, open_bank
    from unfused_fast.shards.sets.table import open_shards

    kind = format_of(out)
    generation = open_bank(bank, epoch)
    shard_set = None if shards is None else open_shards(local_shards(shards))
    with bar("exporting") as advance:
        export(generation, out, kind, shard_set, advance)
    described = {"generation": str(generation.path), **generation.describe(), "format": kind, "out": str(out)}
    if as_json:
        print_json(described)
        return
    print(
        escaped(f"{out}: epoch {described['epoch']}, {described['rows']} rows of {described['dim']} features, {kind}")
    )


def _print_table(bank: Path, found: list[dict[str, Any]]) -> None:
    from unfused_fast.evaluation import terminal_table

    columns = ["epoch", "step", "rows", "dim", "type", "bytes", "norm min", "mean", "max", "checksums"]
    rows = []
    for item in found:
        if "rows" not in item:
            rows.append([Path(item["generation"]).name, *[""] * 8, "DAMAGED"])
            continue
        norms = [item["norms"][name] for name in ("min", "mean", "max")]
        rows.append(
            [
                *(f"{item[name]}" for name in ("epoch", "step")),
                f"{item['rows']:,}",
                str(item["dim"]),
                item["dtype"],
                f"{item['bytes']:,}",
                *("" if norm is None else f"{norm:.6g}" for norm in norms),
                "DAMAGED" if item["damaged"] else "hold" if item["verified"] else "not read (--verify)",
            ]
        )
    stdout_console().print(terminal_table(str(bank), columns, rows))
    for item in found:
        if item.get("norms", {}).get("not_finite"):
            print(f"epoch {item['epoch']}: {item['norms']['not_finite']} rows hold NaN or infinity")
