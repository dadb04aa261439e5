"""Embeddings that are kept: the second question about the same recordings embeds nothing.   N rows, D features.

CACHE/embeddings/KEY.zarr, as `embed` writes it; CACHE is UNFUSED_CACHE, or ~/.cache/unfused-fast. KEY is of the
encoder, its settings and the files with their sizes and times; anything there may be deleted while no command uses it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import zarr
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast import __version__
from unfused_fast.config import flatten
from unfused_fast.console import console, counted
from unfused_fast.embedding import Embedder, embed_files
from unfused_fast.errors import Interrupted, UserError, cause, few
from unfused_fast.shards.callbacks import OnProgress
from unfused_fast.shards.sets.remote_folder import cache_folder
from unfused_fast.shards.sources.location import is_url, state_of
from unfused_fast.shards.sources.row import SourceRow


def kept_embeddings(
    embedder: Embedder, rows: Sequence[SourceRow], progress: OnProgress, frames: bool = False
) -> dict[str, Any]:
    """Arrays of the rows that can be decoded, in their order, embedded now or before.

    Returns:
        row: (M,) which of `rows` each is; seconds: (M,) their lengths; embeddings: zarr array (M, D), or with `frames`
        (all steps, D) with first_row and rows (M,), the steps of each.

    Raises:
        UserError: none of the rows is usable, or the cache cannot be written.
        Interrupted: by Ctrl-C; blocks of files that are done are kept.
    """
    numbered = [replace(row, source=str(number)) for number, row in enumerate(rows)]
    path = cache_folder() / "embeddings" / f"{_key(embedder, rows, frames)}.zarr"
    there, arrays = path.exists(), _opened(path, frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if there and arrays is None:
            shutil.rmtree(path)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({cause(error)}); fix that, or set UNFUSED_CACHE to another folder"
        ) from error
    if arrays is None:
        try:
            embed_files(embedder, numbered, path, frames=frames, progress=progress)
        except KeyboardInterrupt:
            raise Interrupted("stopped; embeddings so far are kept; run the same command again to continue") from None
        arrays = _opened(path, frames)
    assert arrays is not None
    if lost := [row.source for row in map(rows.__getitem__, sorted({*range(len(rows))} - {*arrays["row"]}))]:
        recordings = counted(len(rows), "recording")
        console.once(f"{len(lost)} of {recordings} cannot be used: {few(lost)}; unfused-fast embed says why")
    return arrays


def _opened(path: Path, frames: bool) -> dict[str, Any] | None:
    """What is kept; None where there is nothing yet, or a part is lost or cut short, as by a program that clears old
    files or by a disk.
    """
    try:
        group: Any = zarr.open_group(path, mode="r")
        found = {name: group[name] for name in ("embeddings", "path", "seconds", *(("rows",) if frames else ()))}
        rows = found["embeddings"]
        chunk_bytes = math.prod(rows.chunks) * rows.dtype.itemsize  # not compressed
        sizes = [file.stat().st_size for file in (path / "embeddings" / "c").rglob("*") if file.is_file()]
        if any(array.nchunks_initialized < array.nchunks for array in found.values()) or {*sizes} != {chunk_bytes}:
            return None
        found["row"], found["seconds"] = [int(name) for name in found.pop("path")[:]], found["seconds"][:]
        if frames:
            counts = found["rows"] = found["rows"][:]
            found["first_row"] = counts.cumsum() - counts
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # the last: of a compressed chunk
        return None
    return found


def unit_rows(values: Any) -> Tensor:
    """(N, D) array-like -> (N, D) float32 of unit norm; a row of zeros stays."""
    return normalize(torch.as_tensor(values, dtype=torch.float32), dim=1)


def encoder_key(embedder: Embedder) -> str:
    """sha256 (hex) of all of an encoder that embeddings depend on."""
    norm = embedder.mean, embedder.std, embedder.unit_norm, embedder.pool, embedder.features, __version__
    config = json.dumps(flatten(embedder.config), sort_keys=True, default=list)
    return hashlib.sha256(f"{embedder.digest} {norm} {config}".encode()).hexdigest()


def _key(embedder: Embedder, rows: Sequence[SourceRow], frames: bool) -> str:
    """sha256 (hex, shortened) of all that the embeddings depend on; a file behind a URL counts by its name."""

    @cache
    def whole(file: str | Path) -> str:
        return str(file if is_url(str(file)) else Path(file).resolve())

    digest = hashlib.sha256(f"{encoder_key(embedder)} {frames}".encode())
    for row in rows:
        files = [row.path] if isinstance(row.path, Path) else row.path.files
        member = None if isinstance(row.path, Path) else row.path
        place = [*map(whole, files), *state_of(row.path), member]
        digest.update(json.dumps(place, default=str).encode())
    return digest.hexdigest()[:32]
