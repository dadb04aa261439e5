"""`unfused-fast explore` and `similar`: a set seen and heard, and searched by ear; part of the command line, cli.py."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import Device, Encoder, Json, Overwrite, Shards
from unfused_fast.commands.options import refuse_several
from unfused_fast.commands.output import bar, next_command, open_set, show
from unfused_fast.config import SHIPPED
from unfused_fast.errors import escaped
from unfused_fast.shards.packing.workers import start_server

UNKNOWN_STARTS = (
    "This set is from an earlier version that did not record where each clip begins in its recording; pack the set "
    "again to see seconds."
)

LONG = "Long recordings were compared as a whole; --frames finds moments within them."


def explore(
    shards: Shards,
    out: Annotated[Path, typer.Option(help="Folder to write; any web server can serve it.", show_default=False)],
    encoder: Encoder = SHIPPED,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve it on a free port of 127.0.0.1 until Ctrl-C.")
    ] = False,
    kind: Annotated[
        Literal["umap", "pca"],
        typer.Option("--map", help="umap keeps neighbours together; pca projects to the plane of largest variance."),
    ] = "umap",
    clusters: Annotated[
        int | None, typer.Option(min=2, help="Number of clusters.", show_default="sqrt(clips / 2), at most 64")
    ] = None,
    columns: Annotated[
        list[Path] | None,
        typer.Option(
            "--columns",
            help="A CSV or parquet file with a column clip_id, source or path; the page can colour clips by its other "
            "columns. Repeatable.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a web page to see and hear a shard set: map, clusters, neighbours.

    On the map similar clips are near each other; a click plays a clip. The page needs no network. If OUT already holds
    the page of this set, encoder and options, it is not made again.
    """
    refuse_several()
    start_server()
    from unfused_fast.console import counted
    from unfused_fast.embedding import load
    from unfused_fast.explore import explore_folder, page_server

    shard_set = open_set(shards)
    with bar("embedding") as embedding, bar("writing clips") as writing:
        facts = explore_folder(
            load(encoder, device),
            encoder,
            shard_set,
            out,
            kind=kind,
            clusters=clusters,
            tables=columns or [],
            overwrite=overwrite,
            embedding=embedding,
            writing=writing,
        )
    shown = {name: value for name, value in facts.items() if name != "request"}
    purity = "" if facts["purity"] is None else f" of purity {facts['purity']:.2f}"
    made = (
        f"{out}: {counted(facts['clips'], 'clip')} by {facts['map']}, {counted(facts['clusters'], 'cluster')}{purity}"
    )
    sentences = [made if facts["made"] else f"{made}; it was there already"]
    if not serve:
        more: list[object] = ["--encoder", encoder] if encoder != SHIPPED else []
        more += [word for path in columns or [] for word in ("--columns", path)]
        more += ["--map", kind] if kind != "umap" else []
        more += ["--clusters", clusters] if clusters is not None else []
        sentences.append(next_command("explore", shards, "--out", out, *more, "--serve"))
        show(shown, as_json, [], sentences)
        return
    server, address = page_server(out)
    with server:
        show({**shown, "address": address}, as_json, [], [*sentences, f"open {address} (Ctrl-C ends)"])
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, or a signal that ends a command as that does
            server.serve_forever()


def similar(
    audio: Annotated[
        list[str],
        typer.Argument(
            help="Where to search: a shard set, or what `embed` takes (files, folders, CSVs, archives, URLs).",
            show_default=False,
        ),
    ],
    query: Annotated[Path, typer.Option(help="The recording to compare with.", show_default=False)],
    encoder: Encoder = SHIPPED,
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 20,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames", help="Find moments within long recordings, as long as the query, instead of whole clips."
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the clips or moments that sound most like a recording.

    All recordings are compared. Those with the same samples as the query, such as the query itself, are left out.
    Embeddings are kept in UNFUSED_CACHE or ~/.cache/unfused-fast, so that the next query needs no embedding.
    """
    refuse_several()
    start_server()
    from unfused_fast.console import console
    from unfused_fast.embedding import embed_rows, load
    from unfused_fast.explore import find_similar

    embedder = load(encoder, device)
    rows = embed_rows(audio, console.print)
    with bar("embedding") as progress:
        hits, itself, long = find_similar(embedder, rows, query, top, progress, frames)
    found: list[dict[str, Any]] = [
        {
            "path": rows[hit.row].source,
            "label": rows[hit.row].label or ", ".join(rows[hit.row].labels) or None,
            "seconds": None if rows[hit.row].begins is None else round(hit.seconds, 3),
            "cosine": round(hit.cosine, 4),
        }
        for hit in hits
    ]
    names = ("path", "label", "at second", "cosine")
    lines = [
        (
            escaped(one["path"]),
            escaped(one["label"] or ""),
            "" if one["seconds"] is None else f"{one['seconds']:.2f}",
            f"{one['cosine']:.4f}",
        )
        for one in found
    ]
    shown = [place for place in range(len(names)) if not lines or any(line[place] for line in lines)]
    table = escaped(f"like {query}"), [names[place] for place in shown], [[line[n] for n in shown] for line in lines]
    sentences = [f"left out, with the same samples as the query: {', '.join(itself)}"] if itself else []
    sentences += [LONG] if long and not frames else []
    sentences += [UNKNOWN_STARTS] if any(rows[hit.row].begins is None for hit in hits) else []
    show({"query": str(query), "hits": found, "left_out": itself}, as_json, [table], sentences)
