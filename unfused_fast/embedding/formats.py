"""The rows of `embed` as npz, parquet or zarr.   N rows, D features, M files.

A row is a file, or with --frames a step of one.

npz       embeddings (N, D) float32; path (N,) text; seconds (N,) float64; about: text, JSON
parquet   path, seconds, with --frames timestamp_ms, embedding (D float32); metadata `about`
zarr      embeddings (N, D) float32; path (M,) text; seconds (M,) float64; with --frames first_row and rows (M,) int64,
          and timestamp_ms (N,) float32; attribute `about`

`about` holds the digest of the encoder, pooling, frames, sample rate, version.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from unfused_fast.embedding.parts import ROWS, EmbeddedFile, EmbeddingParts, parquet_writer
from unfused_fast.errors import UserError

Format = Literal["npz", "parquet", "zarr"]
FORMATS: tuple[Format, ...] = ("npz", "parquet", "zarr")
CHUNK_BYTES = 8 * 2**20
"""Largest size in bytes of a zarr chunk of embeddings."""
FILES = 16384
"""Files in a zarr chunk."""
STEPS = 1 << 18
"""Timestamps in a zarr chunk."""


def format_of(out: Path, frames: bool) -> Format:
    """The format by OUT's ending. Raises UserError for an unknown ending, and for frames in an npz."""
    ending = out.suffix.removeprefix(".")
    if ending not in FORMATS:
        raise UserError(f"{out}: want a name that ends in .npz, .parquet or .zarr")
    if frames and ending == "npz":
        raise UserError(f"{out}: --frames gives many rows per file, which needs .zarr or .parquet; name one of these")
    return next(known for known in FORMATS if known == ending)


def write_result(parts: EmbeddingParts, kind: Format, about: Mapping[str, Any]) -> Path:
    """Writes the result inside the folder of the parts, a bounded number of rows at a time."""
    made = parts.folder / f"result-{kind}"
    {"npz": _write_npz, "parquet": _write_parquet, "zarr": _write_zarr}[kind](parts, made, about)
    return made


def _files(parts: EmbeddingParts) -> Iterator[list[EmbeddedFile]]:
    return (block.files for block in parts.blocks() if block.files)


def _write_npz(parts: EmbeddingParts, path: Path, about: Mapping[str, Any]) -> None:
    """np.savez's format, not compressed (embeddings hardly compress); text has fixed width, without pickle.

    Ours: np.savez needs whole arrays in memory.
    """
    longest = max(len(file.path) for files in _files(parts) for file in files)
    text = np.array(json.dumps(about))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, dtype: Any, shape: tuple[int, ...], values: Iterable[Any]) -> None:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for some in values:
                    file.write(np.ascontiguousarray(some, dtype).tobytes())

        member("embeddings", "<f4", (parts.rows, parts.dim), parts.embeddings())
        member("path", f"<U{longest}", (parts.rows,), ([file.path for file in files] for files in _files(parts)))
        member("seconds", "<f8", (parts.rows,), ([file.seconds for file in files] for files in _files(parts)))
        member("about", text.dtype, (), [text])


def _write_parquet(parts: EmbeddingParts, path: Path, about: Mapping[str, Any]) -> None:
    schema = parts.schema.with_metadata({"about": json.dumps(about)})
    waiting = schema.empty_table()
    with parquet_writer(path, schema, "zstd") as writer:
        for batch in (batch for block in parts.blocks() for batch in block.table.iter_batches(ROWS)):
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
            if len(waiting) >= ROWS:
                writer.write_table(waiting)
                waiting = schema.empty_table()
        writer.write_table(waiting)


def _write_zarr(parts: EmbeddingParts, path: Path, about: Mapping[str, Any]) -> None:
    """Each chunk is written once."""
    group, frames = zarr.create_group(path, overwrite=True), parts.centres is not None
    chunk = max(1, CHUNK_BYTES // (4 * parts.dim))
    embeddings: Any = group.create_array(
        "embeddings", shape=(parts.rows, parts.dim), chunks=(chunk, parts.dim), dtype="float32", compressors=None
    )
    _fill(embeddings, parts.embeddings(), chunk)
    files = [file for some in _files(parts) for file in some]
    rows = np.array([file.rows for file in files], np.int64)
    columns: dict[str, tuple[Any, Any]] = {
        "path": (str, np.array([file.path for file in files], np.dtypes.StringDType())),
        "seconds": ("float64", np.array([file.seconds for file in files])),
    }
    if frames:
        columns |= {"first_row": ("int64", np.cumsum(rows) - rows), "rows": ("int64", rows)}
    for name, (dtype, values) in columns.items():
        array: Any = group.create_array(name, shape=values.shape, chunks=(FILES,), dtype=dtype)
        array[:] = values
    if parts.centres is not None:
        times: Any = group.create_array("timestamp_ms", shape=(parts.rows,), chunks=(STEPS,), dtype="float32")
        _fill(times, (parts.centres(np.arange(count)) for count in rows), STEPS)
    group.attrs["about"] = dict(about)


def _fill(array: Any, values: Iterable[NDArray[Any]], chunk: int) -> None:
    """Appends values (n, ...), a whole chunk at a time."""
    first, waiting = 0, array[:0]
    for some in values:
        waiting = np.concatenate([waiting, some])
        while len(waiting) >= chunk:
            array[first : first + chunk], waiting = waiting[:chunk], waiting[chunk:]
            first += chunk
    array[first:] = waiting
