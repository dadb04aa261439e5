"""`unfused-fast check`, `peek`, `bank ...` and `clusters`: what is in a shard set, a memory bank, a run's clusters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from unfused_fast.commands.flags import Json, Shards
from unfused_fast.commands.options import refuse_several
from unfused_fast.commands.output import bar, local_shards, open_set, show
from unfused_fast.errors import UserError, cause, escaped

bank_app = typer.Typer(no_args_is_help=True, help="Inspect the memory bank of a run, or export it.")

BANK_COLUMNS = ("epoch", "step", "rows", "dim", "type", "bytes", "norm min", "mean", "max", "checksums")
"""Of `bank info`."""
Bank = Annotated[
    Path, typer.Argument(help="A run of train pretrain, its bank.zarr, or a generation in it.", show_default=False)
]


def check(
    shards: Shards,
    every_clip: Annotated[
        bool, typer.Option("--every-clip", help="Decode and measure every clip, not only a sample of about 250.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Number of processes.", show_default="one a core", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Verify a shard set, and warn of what may spoil training.

    It reads the whole set and names every file that is damaged; the exit code is then 1. Warnings are about leaks
    between splits, duplicates, labels, clipping, silence, DC offset and narrow bands.
    """
    from unfused_fast.console import counted
    from unfused_fast.mel import log_mel_statistics
    from unfused_fast.shards.check.check import check as checked
    from unfused_fast.shards.sets.table import MANIFEST, read_manifest
    from unfused_fast.shards.sources.location import display_name

    started, folder = time.perf_counter(), local_shards(shards)
    if not (folder / MANIFEST).exists():
        read_manifest(folder)  # says what is there instead
    with bar("checking", "damaged") as advance:
        found = checked(folder, every_clip=every_clip, workers=workers, statistics=log_mel_statistics, progress=advance)
    result = {
        "shards": display_name(shards),
        "clips": found.clips,
        "corrupt": [asdict(finding) for finding in found.corrupt],
        "warnings": [asdict(finding) for finding in found.warnings],
        "seconds": round(time.perf_counter() - started, 3),
    }
    sentences = [finding.message for finding in found.corrupt]
    sentences += [f"warning: {finding.message}" for finding in found.warnings]
    if not found.corrupt:
        clips = counted(found.clips, "clip")
        sentences.append(f"{display_name(shards)}: intact, {clips}; every shard matches its checksum")
    show(result, as_json, [], sentences)
    if found.corrupt:
        raise typer.Exit(1)


def peek(
    shards: Shards,
    out: Annotated[
        Path, typer.Option(help="PNG picture of log-mels to write; a file of that name is replaced.")
    ] = Path("peek.png"),
    play_to: Annotated[
        Path | None, typer.Option(help="Folder to write the same clips to, as WAV.", show_default="none are written")
    ] = None,
    examples: Annotated[int, typer.Option(help="Clips for each class.", min=1, max=10)] = 3,
    as_json: Json = False,
) -> None:
    """Show what a shard set holds: splits, labels, lengths, log-mels."""
    from unfused_fast.console import counted
    from unfused_fast.explore import contents, examples_of, write_clips, write_sheet
    from unfused_fast.shards.sources.location import display_name

    shard_set = open_set(shards)
    name, table = display_name(shards), contents(shard_set)
    chosen = examples_of(shard_set, examples)
    clips = counted(len(chosen), "clip")
    write_sheet(out, chosen, f"{name}: log-mel of {clips}")
    written = [] if play_to is None else write_clips(play_to, chosen)
    columns = ("split", "label", "clips", "seconds", "shortest", "median", "longest")
    rows = [[cell if isinstance(cell := row[key], str) else f"{cell:,.6g}" for key in columns] for row in table]
    result = {"shards": name, "contents": table, "sheet": str(out), "clips": [str(path) for path in written]}
    sentences = [f"log-mels of {clips}: {out}", *([f"{clips} to listen to: {play_to}"] if play_to else [])]
    show(result, as_json, [(name, columns, rows)], sentences)


@bank_app.command("info")
def bank_info(
    bank: Bank,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all rows and compare them with their checksums.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the saved generations: epoch, size, norms. The exit code is 1 when one is damaged."""
    from unfused_fast.clustering import DamagedBank, Generation, generation_paths
    from unfused_fast.console import counted

    found: list[dict[str, Any]] = []
    for path in generation_paths(bank):
        entry: dict[str, Any] = {"generation": str(path), "damaged": []}
        found.append(entry)
        try:
            generation = Generation(path)
        except DamagedBank as error:
            entry["damaged"].append(error.fact)
            continue
        entry |= {**generation.describe(), "verified": verify}
        if verify:
            files = len(list(generation.manifest.files()))
            with bar(path.name, "damaged") as advance:
                for done, fact in enumerate(generation.verify(), 1):
                    entry["damaged"] += [fact] if fact else []
                    advance(done, files, len(entry["damaged"]))
    facts = [fact for entry in found for fact in entry["damaged"]]
    notes = [
        f"epoch {entry['epoch']}: {counted(entry['norms']['not_finite'], 'row')} with NaN or infinity"
        for entry in found
        if entry.get("norms", {}).get("not_finite")
    ]
    table = str(bank), BANK_COLUMNS, list(map(_generation_row, found))
    show({"bank": str(bank), "generations": found}, as_json, [table], [*notes, *facts])
    if facts:
        raise typer.Exit(1)


@bank_app.command("export")
def bank_export(
    bank: Bank,
    out: Annotated[
        Path,
        typer.Option(
            help="File to write (.npz, .parquet, .csv), or a folder without an ending for TensorBoard's projector.",
            show_default=False,
        ),
    ],
    epoch: Annotated[int | None, typer.Option(help="Epoch of the generation.", show_default="newest")] = None,
    shards: Annotated[
        str | None, typer.Option(help="The run's shard set; adds split, label and source.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write rows, assignments and clip ids as npz, parquet or CSV, or for TensorBoard's projector."""
    refuse_several()
    from unfused_fast.clustering import export, format_of, open_bank

    kind = format_of(out)
    generation = open_bank(bank, epoch)
    shard_set = None if shards is None else open_set(shards)
    with bar("exporting") as advance:
        export(generation, out, kind, shard_set, advance)
    described = {"generation": str(generation.path), **generation.describe(), "format": kind, "out": str(out)}
    rows = f"{described['rows']:,} rows of {described['dim']} features"
    show(described, as_json, [], [f"{out}: epoch {described['epoch']}, {rows}, {kind}"])


def _generation_row(entry: Mapping[str, Any]) -> list[str]:
    """A generation as text, in the order of BANK_COLUMNS; of a damaged one little is known."""
    if "rows" not in entry:
        return [Path(entry["generation"]).name, *[""] * 8, "DAMAGED"]
    state = "DAMAGED" if entry["damaged"] else "hold" if entry["verified"] else "not read (--verify)"
    norms = ["" if (norm := entry["norms"][name]) is None else f"{norm:.6g}" for name in ("min", "mean", "max")]
    place = [str(entry["epoch"]), str(entry["step"]), f"{entry['rows']:,}", str(entry["dim"]), entry["dtype"]]
    return [*place, f"{entry['bytes']:,}", *norms, state]


def clusters(
    run: Annotated[Path, typer.Argument(help="Run directory of train pretrain.", show_default=False)],
    shards: Annotated[
        str | None, typer.Option(help="The set of the run, for names and labels.", show_default="clip ids only")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of most central clips to show for each cluster.", min=0)] = 5,
    limit: Annotated[int, typer.Option(help="Number of clusters to show; 0: all. --json has all.", min=0)] = 20,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the cluster sizes to write; a file of that name is replaced.",
            show_default="none is written",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the clusters of a run: sizes, most central clips, purity.

    These are the clusters of the last saved epoch, largest first. Where the set has labels, the commonest label of each
    cluster is shown with its share (purity); training never reads labels. Cosines and spread are of the bank that was
    saved after the epoch; those in log.jsonl are of the bank that was clustered before it.
    """
    from unfused_fast.stages import describe_clusters

    described = describe_clusters(run, None if shards is None else open_set(shards), top)
    sizes = described.pop("sizes")
    if png is not None:
        _draw(png, sizes, f"{run.name}, epoch {described['epoch']}")
    result = {"run": str(run), **({} if png is None else {"png": str(png)}), **described}
    found: list[dict[str, Any]] = described.pop("found")
    labelled = "label_nmi" in described
    shown = found[: limit or None]
    columns = ["cluster", "clips", "share", "mean cosine", *(["label", "purity"] if labelled else []), "most central"]
    table = f"clusters of {run}", columns[: None if top else -1], [_row(entry, labelled) for entry in shown]
    sentences = [
        "  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in described.items()),
        f"clusters: the targets of epoch {described['epoch']}; cosines and spread: of the bank as saved after it",
    ]
    if len(shown) < len(found):
        sentences.insert(0, f"the {len(shown):,} largest of {len(found):,} clusters; --limit 0 shows all")
    show(result, as_json, [table], [*sentences, *([] if png is None else [f"sizes: {png}"])])


def _row(entry: dict[str, Any], labelled: bool) -> list[str]:
    """One cluster as text, in the order of the table's columns."""
    judged = []
    if labelled:
        purity = entry["purity"]
        judged = [escaped(entry["label"] or ""), "" if purity is None else f"{purity:.2f}"]
    central = [escaped(str(clip.get("source", clip["clip_id"]))) for clip in entry["central"]]
    shown = [str(entry["cluster"]), f"{entry['clips']:,}", f"{entry['share']:.2%}", f"{entry['mean_cosine']:.3f}"]
    return [*shown, *judged, *(["\n".join(central)] if central else [])]


def _draw(png: Path, sizes: list[int], title: str) -> None:
    from unfused_fast.training import plot_cluster_sizes

    try:
        plot_cluster_sizes(png, sizes, title)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture
        raise UserError(f"{png}: cannot be written ({cause(error)}); name a .png in a folder that exists") from error
