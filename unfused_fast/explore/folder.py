"""A static folder with the page of a set: everything it needs is in there.   N clips, K neighbours.

OUT/index.html, explore.css, *.js   the page
OUT/data/explore.json               written last: title, columns, clusters
OUT/data/map.f32, neighbours.i32, cosines.f32, column-NUMBER.i32 or .f32   little-endian, row = clip of the page
OUT/data/sources.json               the clips' files
OUT/audio/THOUSANDS/KEY.flac        the clips; OUT/mel/THOUSANDS/KEY.png their log-mels
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from unfused_fast import __version__
from unfused_fast.config import FrontendConfig
from unfused_fast.console import counted
from unfused_fast.data import log_mel
from unfused_fast.embedding import Embedder, shard_set_rows
from unfused_fast.errors import UserError, cause
from unfused_fast.explore.clips import read_clips
from unfused_fast.explore.columns import (
    clusters_of,
    columns_in,
    columns_of,
    own_pseudo_labels,
    table_digest,
    usual_clusters,
)
from unfused_fast.explore.embeddings import encoder_key, kept_embeddings, unit_rows
from unfused_fast.explore.layout import MAP_NEIGHBOURS, MapKind, map_of, nearest
from unfused_fast.json_files import read_json
from unfused_fast.shards.audio.codec import encode_clip
from unfused_fast.shards.callbacks import OnProgress
from unfused_fast.shards.sets.shard_files import clip_key
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import refuse_others, replaceable

SHOWN = 10
"""Neighbours on the page."""
PICTURE_FRAMES = 256
"""Most columns of a picture; of a longer clip each is the mean over several frames."""
RANGE = 13.8
"""Natural logarithms from the loudest bin of a clip to black. Ours: 60 dB."""
ABOUT = "data/explore.json"
LARGEST_ABOUT = 2**30
PAGE = "a page of explore"
PARTS = {"index.html", "explore.css", "explore.js", "scatter.js", "player.js", "data", "audio", "mel"}


def explore_folder(
    embedder: Embedder,
    encoder: str,
    shards: ShardSet,
    out: Path,
    *,
    kind: MapKind = "umap",
    clusters: int | None = None,
    tables: Sequence[Path] = (),
    overwrite: bool = False,
    embedding: OnProgress,
    writing: OnProgress,
) -> dict[str, Any]:
    """Makes OUT, or leaves it where it is of the same request already.

    Args:
        encoder: as the user named it; a run of stage 2 on this set adds its pseudo-labels.
        clusters: K of the page's own clusters; None: see usual_clusters.
        tables: CSV or parquet files whose columns clips can be coloured by, see columns_in.
        overwrite: replace a page of another request; a folder that is no page is never replaced.
        embedding, writing: progress of the two slow parts.

    Returns:
        Values to print.

    Raises:
        UserError: OUT is there and is not to be replaced, UMAP is missing, a table does not fit, no usable clip.
    """
    digest = hashlib.sha256(f"{shards.manifest.digest} {encoder_key(embedder)}".encode())
    digest.update(f"{kind} {clusters} {[table_digest(path) for path in tables]}".encode())
    request = digest.hexdigest()
    before = _page_of(out, overwrite, request)
    if before is not None and before["request"] == request and not overwrite:
        return {**_facts(before, out), "made": False}
    place = replaceable(out, PARTS, PAGE)
    _check_clusters(clusters, shards.clips.num_rows)
    columns = [*columns_of(shards), *own_pseudo_labels(encoder, shards)]
    for path in tables:
        columns += columns_in(path, shards, {"cluster", "label", "split", *(column.name for column in columns)})
    arrays = kept_embeddings(embedder, shard_set_rows(shards), embedding)
    kept = np.array(arrays["row"], np.int64)
    _check_clusters(clusters, len(kept))
    unit, columns = unit_rows(arrays["embeddings"][:]), [column.of(kept) for column in columns]
    label = next((column for column in columns if column.name == "label"), None)
    multi_label = any(len(ids) > 1 for ids in shards.clips["labels"].to_pylist() if ids)
    ids, cosines = nearest(unit.to(embedder.device), max(SHOWN, MAP_NEIGHBOURS))
    places = map_of(unit, kind, ids, cosines)
    k = usual_clusters(len(unit)) if clusters is None else clusters
    cluster, described = clusters_of(unit, k, None if multi_label else label)
    columns = [cluster, *columns]
    about: dict[str, Any] = {
        "request": request,
        "written_by": f"unfused-fast {__version__}",
        "title": shards.name,
        "encoder": Path(embedder.name).name,
        "clips": len(kept),
        "left_out": shards.clips.num_rows - len(kept),
        "map": kind,
        "neighbours": min(SHOWN, ids.shape[1]),
        "seconds": round(float(np.sum(shards.clips["seconds"].to_numpy()[kept])), 3),
        "columns": [{"name": column.name, "names": column.names} for column in columns],
        "clusters": described,
        "ids": kept.tolist() if len(kept) < shards.clips.num_rows else None,
    }
    new = place.with_name(f"{place.name}.partial")
    try:
        if new.exists():
            shutil.rmtree(new)
        _copy_page(new)
        _write(new, "map.f32", places)
        _write(new, "neighbours.i32", ids[:, :SHOWN])
        _write(new, "cosines.f32", cosines[:, :SHOWN])
        for number, column in enumerate(columns):
            _write(new, f"column-{number}.{'f32' if column.names is None else 'i32'}", column.values)
        sources = shards.clips["source"].take(kept).to_pylist()
        (new / "data" / "sources.json").write_text(json.dumps(sources, ensure_ascii=False), encoding="utf-8")
        _write_clips(new, shards, set(kept.tolist()), embedder.config.frontend, writing)
        (new / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        new.rename(place)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); choose another --out") from error
    return {**_facts(about, out), "made": True}


def _check_clusters(clusters: int | None, clips: int) -> None:
    if clusters is not None and clusters > max(2, clips):
        raise UserError(
            f"--clusters {clusters}: there are {counted(clips, 'clip')}; want 2 to {max(2, clips)} clusters"
        )


def log_mel_picture(pcm: NDArray[np.int16], frontend: FrontendConfig) -> Image.Image:
    """Samples at 16 kHz -> the log-mel of the encoder's front end, low frequencies below, (F, up to PICTURE_FRAMES)."""
    wave = torch.from_numpy(pcm.astype(np.float32) / 32768)
    if (lacking := frontend.n_fft // 2 + 1 - len(wave)) > 0:
        wave = torch.nn.functional.pad(wave, (0, lacking))
    found = log_mel(wave, frontend).numpy()
    if found.shape[1] > PICTURE_FRAMES:
        edges = np.linspace(0, found.shape[1], PICTURE_FRAMES, endpoint=False).astype(int)
        found = np.add.reduceat(found, edges, axis=1) / np.diff(edges, append=found.shape[1])
    loudest = found.max() if np.ptp(found) else np.inf  # digital silence is black
    levels = np.clip(255 * (1 + (found - loudest) / RANGE), 0, 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels[::-1]), "L").convert("P")
    picture.putpalette((255 * colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
    return picture


def _write_clips(new: Path, shards: ShardSet, kept: set[int], frontend: FrontendConfig, progress: OnProgress) -> None:
    """The audio and the log-mel of each clip, read from the tars in their order."""
    for thousand in sorted({clip_id // 1000 for clip_id in kept}):
        for part in ("audio", "mel"):
            (new / part / str(thousand)).mkdir(parents=True)
    for done, (clip_id, data, pcm) in enumerate(read_clips(shards, kept), 1):
        place = f"{clip_id // 1000}/{clip_key(clip_id)}"
        flac = data if shards.manifest.codec == "flac" else encode_clip(pcm, "flac")
        (new / "audio" / f"{place}.flac").write_bytes(flac)
        log_mel_picture(pcm, frontend).save(new / "mel" / f"{place}.png")
        progress(done, len(kept), 0)


def _copy_page(new: Path) -> None:
    (new / "data").mkdir(parents=True)
    for part in files("unfused_fast.explore").joinpath("page").iterdir():
        (new / part.name).write_bytes(part.read_bytes())


def _write(new: Path, name: str, values: NDArray[Any]) -> None:
    kind = "<i4" if name.endswith("i32") else "<f4"
    (new / "data" / name).write_bytes(np.ascontiguousarray(values, kind).tobytes())


def _page_of(out: Path, overwrite: bool, request: str) -> dict[str, Any] | None:
    """What a page in OUT says of itself; None where there is nothing yet. Raises UserError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        refuse_others(out, PARTS, PAGE)
        about = dict(read_json(out / ABOUT, LARGEST_ABOUT))
        _facts(about, out)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{out}: it is not a page of explore ({cause(error)}); choose another --out") from error
    if about["request"] != request and not overwrite:
        raise UserError(
            f"{out}: holds a page made from other clips, another encoder or other options ({about['title']} by "
            f"{about['encoder']}); replace it with --overwrite, or choose another --out"
        )
    return about


def _facts(about: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is printed of a page."""
    labelled = [(entry["clips"], entry["purity"]) for entry in about["clusters"] if "purity" in entry]
    total = sum(clips for clips, _ in labelled)
    return {
        "out": str(out),
        "clips": about["clips"],
        "left_out": about["left_out"],
        "map": about["map"],
        "clusters": len(about["clusters"]),
        "purity": round(sum(clips * purity for clips, purity in labelled) / total, 4) if total else None,
        "columns": [column["name"] for column in about["columns"]],
        "request": about["request"],
    }
