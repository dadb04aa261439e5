"""`unfused-fast explore` and `similar`: a set seen and heard, and searched by ear; part of the command line, cli.py."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unfused_fast.commands.flags import TRAINED, Device, Json, Overwrite, Shards
from unfused_fast.commands.options import refuse_several
from unfused_fast.commands.output import bar, next_command, open_set, show
from unfused_fast.errors import escaped
from unfused_fast.shards.packing.workers import start_server

PIECES = (
    "some hits are clips of longer recordings, and their seconds count from where the clip begins; for seconds of the "
    "recording, search the recording itself instead of its shard set: unfused-fast similar RECORDING --frames ..."
)

Encoder = Annotated[str, typer.Option(help=f"{TRAINED}.", show_default=False)]


def explore(
    shards: Shards,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="Folder to write, for any web server.", show_default=False)],
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve it on 127.0.0.1, on a free port, until Ctrl-C.")
    ] = False,
    kind: Annotated[
        Literal["umap", "pca"],
        typer.Option("--map", help="umap: neighbours stay together; pca: the plane of largest variance."),
    ] = "umap",
    clusters: Annotated[
        int | None, typer.Option(min=2, help="Clusters to list.", show_default="sqrt(clips / 2), at most 64")
    ] = None,
    columns: Annotated[
        list[Path] | None,
        typer.Option(
            "--columns",
            help="A CSV or parquet file with a column clip_id, source or path: clips can be coloured by its other "
            "columns. Repeatable.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """See and hear a shard set: a page with a map of its clips by what an encoder hears in them, their clusters and
    nearest neighbours, every clip one click from being played.

    The page needs no network. A page that is there already of the same set, encoder and options is left as it is.
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
        more: list[object] = [word for path in columns or [] for word in ("--columns", path)]
        more += ["--map", kind] if kind != "umap" else []
        more += ["--clusters", clusters] if clusters is not None else []
        sentences.append(next_command("explore", shards, "--encoder", encoder, "--out", out, *more, "--serve"))
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
            help="Where to look: a shard set, or all that `embed` takes: files, folders, CSVs, archives, URLs.",
            show_default=False,
        ),
    ],
    query: Annotated[Path, typer.Option(help="The recording to look for.", show_default=False)],
    encoder: Encoder,
    top: Annotated[int, typer.Option(min=1, help="Hits to show.")] = 20,
    frames: Annotated[
        bool, typer.Option("--frames", help="Moments as long as the query within long recordings, not whole clips.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What sounds like this recording: the nearest clips, or with --frames the nearest moments, by exact search.

    Embeddings are kept in UNFUSED_CACHE or ~/.cache/unfused-fast, so that the next query is answered at once.
    """
    refuse_several()
    start_server()
    from unfused_fast.console import console
    from unfused_fast.embedding import embed_rows, load
    from unfused_fast.explore import similar_clips, similar_moments

    embedder = load(encoder, device)
    rows = embed_rows(audio, console.print)
    find = similar_moments if frames else similar_clips
    with bar("embedding") as progress:
        hits = find(embedder, rows, query, top, progress)
    found: list[dict[str, Any]] = [
        {
            "path": rows[hit.row].source,
            "label": rows[hit.row].label or ", ".join(rows[hit.row].labels) or None,
            "seconds": round(hit.seconds, 3),
            "cosine": round(hit.cosine, 4),
        }
        for hit in hits
    ]
    lines = [
        [escaped(one["path"]), escaped(one["label"] or ""), f"{one['seconds']:.2f}", f"{one['cosine']:.4f}"]
        for one in found
    ]
    table = escaped(f"like {query}"), ("path", "label", "at second", "cosine"), lines
    sources = Counter(row.source for row in rows)
    cut = any(sources[one["path"]] > 1 for one in found)
    show({"query": str(query), "hits": found}, as_json, [table], [PIECES] if cut else [])
