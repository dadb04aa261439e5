"""`unfused-fast clusters`: what a pre-training run has clustered; part of the command line in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unfused_fast.commands.flags import Json
from unfused_fast.commands.output import local_shards, print_json, stdout_console
from unfused_fast.errors import UserError, cause, escaped


def clusters(
    run: Annotated[Path, typer.Argument(help="Run directory of train pretrain.", show_default=False)],
    shards: Annotated[
        str | None,
        typer.Option(help="The set it was trained on: for names and labels.", show_default="clip ids only"),
    ] = None,
    top: Annotated[int, typer.Option(help="Most central clips shown of each cluster.", min=0)] = 5,
    limit: Annotated[int, typer.Option(help="Clusters shown; 0: all. --json has all.", min=0)] = 20,
    png: Annotated[
        Path | None, typer.Option(help="Picture of the clusters' sizes to write.", show_default="none is written")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a run has clustered: sizes, most central clips, purity.

    The last clusters, largest first; where the set has labels, with the commonest label of each and its share. Labels
    are read here only, never in training.
    """
    from unfused_fast.evaluation import terminal_table
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import check_set, describe, last_clusters

    last = last_clusters(run)
    shard_set = None if shards is None else open_shards(local_shards(shards))
    if shard_set is not None:
        check_set(run, last, shard_set)
    described = describe(last, shard_set, top)
    sizes = described.pop("sizes")
    if png is not None:
        _draw(png, sizes, f"{run.name}, epoch {last.epoch}")
    if as_json:
        print_json({"run": str(run), **({} if png is None else {"png": str(png)}), **described})
        return
    found: list[dict[str, Any]] = described.pop("found")
    labelled = "label_nmi" in described
    shown = found[: limit or None]
    columns = ["cluster", "clips", "share", "mean cosine", *(["label", "purity"] if labelled else []), "most central"]
    stdout_console().print(
        terminal_table(f"clusters of {run}", columns[: None if top else -1], [_row(entry, labelled) for entry in shown])
    )
    if len(shown) < len(found):
        print(f"the {len(shown):,} largest of {len(found):,} clusters; --limit 0 shows all")
    print("  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in described.items()))
    if png is not None:
        print(f"sizes: {png}")


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
