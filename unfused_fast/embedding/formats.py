"""The rows of `embed` as npz, parquet, zarr or CSV.   N rows, D features, M files.

A row is a file, or with --frames a step of one.

npz       embeddings (N, D) float32; path (N,) text; seconds (N,) float64; about: text, JSON
parquet   path, seconds, with --frames timestamp_ms, embedding (D float32); metadata `about`
zarr      embeddings (N, D) float32; path (M,) text; seconds (M,) float64; with --frames first_row and rows (M,) int64,
          and timestamp_ms (N,) float32; attribute `about`
csv       path, seconds, with --frames timestamp_ms, embedding_0 to embedding_{D-1}: the shortest numbers that are read
          back as the same float32; no `about`

`about` holds the digest of the encoder, pooling, layers, frames, sample rate, version.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from unfused_fast.embedding.parts import DoneFile, EmbeddingParts
from unfused_fast.endings import by_ending
from unfused_fast.errors import UserError

Format = Literal["npz", "parquet", "zarr", "csv"]
Centres = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""(n,) numbers of steps -> (n,) milliseconds."""
FORMATS: dict[str, Format] = {".npz": "npz", ".parquet": "parquet", ".zarr": "zarr", ".csv": "csv"}
ROWS = 1024
"""Rows of npz, parquet and CSV that are written at once."""
CHUNK_BYTES = 8 * 2**20
"""Largest size in bytes of a zarr chunk of embeddings."""
FILES = 16384
"""Files in a zarr chunk."""
STEPS = 1 << 18
"""Timestamps in a zarr chunk."""


def format_of(out: Path, frames: bool) -> Format:
    """The format by OUT's ending. Raises UserError for an unknown ending, and for frames in an npz."""
    kind = by_ending(out, FORMATS)
    if frames and kind == "npz":
        raise UserError(
            f"{out}: --frames gives many rows per file, which needs .zarr, .parquet or .csv; name one of these"
        )
    return kind


def write_result(parts: EmbeddingParts, kind: Format, about: Mapping[str, Any], centres: Centres | None) -> Path:
    """Writes the result inside the folder of the parts, a bounded number of rows at a time; `centres` are the times of
    the steps, where rows are steps.
    """
    made, files = parts.folder / f"result-{kind}", [file for file in parts.files if not file.reason]
    if kind == "npz":
        _write_npz(parts, files, made, about)
    else:
        {"parquet": _write_parquet, "zarr": _write_zarr, "csv": _write_csv}[kind](parts, files, made, about, centres)
    return made


def _write_npz(parts: EmbeddingParts, files: list[DoneFile], path: Path, about: Mapping[str, Any]) -> None:
    """np.savez's format, not compressed (embeddings hardly compress); text has fixed width, without pickle.

    Ours: np.savez needs whole arrays in memory.
    """
    longest, text = max(len(file.path) for file in files), np.array(json.dumps(about))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, dtype: Any, shape: tuple[int, ...], values: Iterable[Any]) -> None:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for some in values:
                    file.write(np.ascontiguousarray(some, dtype).tobytes())

        member("embeddings", "<f4", (parts.rows, parts.dim), parts.embeddings(ROWS))
        member("path", f"<U{longest}", (parts.rows,), (file.path for file in files))
        member("seconds", "<f8", (parts.rows,), (file.seconds for file in files))
        member("about", text.dtype, (), [text])


def _write_parquet(
    parts: EmbeddingParts, files: list[DoneFile], path: Path, about: Mapping[str, Any], centres: Centres | None
) -> None:
    times = [] if centres is None else [("timestamp_ms", pa.float32())]
    row = ("embedding", pa.list_(pa.float32(), parts.dim))
    schema = pa.schema([("path", pa.string()), ("seconds", pa.float64()), *times, row], {"about": json.dumps(about)})
    plain = [name for name in schema.names if name != "embedding"]
    settings = {"compression": "zstd", "use_dictionary": ["path"], "write_statistics": plain}
    # the errors of a Python file object have an errno on a full disk
    with path.open("wb") as file, pq.ParquetWriter(file, schema, **settings) as writer:
        for embeddings, columns in _tables(parts, files, centres):
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), parts.dim)
            writer.write_table(pa.table(columns, schema))


def _write_csv(
    parts: EmbeddingParts, files: list[DoneFile], path: Path, about: Mapping[str, Any], centres: Centres | None
) -> None:
    """RFC 4180, in UTF-8; what has a comma, a quote or a line end is in quotes."""
    header = True
    with path.open("wb") as file:
        for embeddings, columns in _tables(parts, files, centres):
            features = {f"embedding_{place}": values for place, values in enumerate(np.ascontiguousarray(embeddings.T))}
            settings = pa_csv.WriteOptions(include_header=header, quoting_style="needed")
            pa_csv.write_csv(pa.table({**columns, **features}), file, settings)
            header = False


def _tables(
    parts: EmbeddingParts, files: list[DoneFile], centres: Centres | None
) -> Iterator[tuple[NDArray[np.float32], dict[str, Any]]]:
    """ROWS rows at a time: (n, D) float32, and the other columns."""
    for embeddings, (owners, steps) in zip(parts.embeddings(ROWS), _steps_of(files, ROWS), strict=True):
        columns: dict[str, Any] = {
            "path": [owner.path for owner in owners],
            "seconds": [owner.seconds for owner in owners],
        }
        if centres is not None:
            columns["timestamp_ms"] = np.asarray(centres(steps), np.float32)
        yield embeddings, columns


def _write_zarr(
    parts: EmbeddingParts, files: list[DoneFile], path: Path, about: Mapping[str, Any], centres: Centres | None
) -> None:
    """Each chunk is written once."""
    group, chunk = zarr.create_group(path, overwrite=True), max(1, CHUNK_BYTES // (4 * parts.dim))
    embeddings: Any = group.create_array(
        "embeddings", shape=(parts.rows, parts.dim), chunks=(chunk, parts.dim), dtype="float32", compressors=None
    )
    _fill(embeddings, parts.embeddings(chunk), chunk)
    rows = np.array([file.rows for file in files], np.int64)
    columns: dict[str, tuple[Any, Any]] = {
        "path": (str, np.array([file.path for file in files], np.dtypes.StringDType())),
        "seconds": ("float64", np.array([file.seconds for file in files])),
    }
    if centres is not None:
        columns |= {"first_row": ("int64", np.cumsum(rows) - rows), "rows": ("int64", rows)}
    for name, (dtype, values) in columns.items():
        array: Any = group.create_array(name, shape=values.shape, chunks=(FILES,), dtype=dtype)
        array[:] = values
    if centres is not None:
        times: Any = group.create_array("timestamp_ms", shape=(parts.rows,), chunks=(STEPS,), dtype="float32")
        _fill(times, (centres(steps) for _, steps in _steps_of(files, STEPS)), STEPS)
    group.attrs["about"] = dict(about)


def _steps_of(files: list[DoneFile], size: int) -> Iterator[tuple[list[DoneFile], NDArray[np.int64]]]:
    """Of each row, `size` rows at a time: its file, and which of the file's rows it is."""
    rows = np.array([file.rows for file in files])
    ends = np.cumsum(rows)
    for first in range(0, int(ends[-1]), size):
        places = np.arange(first, min(first + size, int(ends[-1])))
        owners = np.searchsorted(ends, places, side="right")
        yield [files[owner] for owner in owners], places - (ends - rows)[owners]


def _fill(array: Any, chunks: Iterable[NDArray[Any]], size: int) -> None:
    for number, some in enumerate(chunks):
        array[number * size : number * size + len(some)] = some
