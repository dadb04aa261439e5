"""The rows of `embed` as npz, parquet or zarr.   N rows, D features, M files.

A row is a file, or with --frames a step of one.

npz       embeddings (N, D) float32; path (N,) text; seconds (N,) float64; about: text, JSON
parquet   path, seconds, with --frames timestamp_ms, embedding (D float32); metadata `about`
zarr      embeddings (N, D) float32; path (M,) text; seconds (M,) float64; with --frames first_row and rows (M,) int64,
          and timestamp_ms (N,) float32; attribute `about`

`about` says with what: the digest of the encoder, pooling, frames, sample rate, version.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from unfused_fast.embedding.store import EmbeddingStore, FileRecord

Format = Literal["npz", "parquet", "zarr"]
Centres = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""(n,) numbers of steps -> (n,) milliseconds."""
FORMATS: tuple[Format, ...] = ("npz", "parquet", "zarr")
ROWS = 1024
"""Rows, or files, that are held at once."""
CHUNK_BYTES = 8 * 2**20
"""Most bytes of a chunk of embeddings of zarr."""
FILES = 16384
"""Files of a chunk of zarr."""
STEPS = 1 << 18
"""Timestamps of a chunk of zarr."""


def write_rows(store: EmbeddingStore, kind: Format, about: Mapping[str, Any], centres: Centres | None) -> Path:
    """Makes the result inside the store's folder, a bounded number of rows at a time. Args: centres: with --frames."""
    made = store.folder / f"result.{kind}"
    if kind == "npz":
        _write_npz(store, made, about)
    elif kind == "parquet":
        _write_parquet(store, made, about, centres)
    else:
        _write_zarr(store, made, about, centres)
    return made


def _write_npz(store: EmbeddingStore, path: Path, about: Mapping[str, Any]) -> None:
    """np.savez's format, not compressed (numbers like these do not shrink); text is fixed width, without pickle."""
    longest = max((len(record.path) for record in store.records()), default=1)
    text = np.array(json.dumps(about))

    def header(file: IO[bytes], dtype: Any, shape: tuple[int, ...]) -> None:
        value = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, value)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, dtype: Any, shape: tuple[int, ...], parts: Iterator[NDArray[Any]]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header(file, dtype, shape)
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype).tobytes())

        count = store.rows
        blocks = (store.read(first, min(first + ROWS, count)) for first in range(0, count, ROWS))
        member("embeddings", "<f4", (count, store.dim), blocks)
        paths = (np.array([record.path for record in some]) for some in _some(store.records()))
        member("path", f"<U{longest}", (count,), paths)
        seconds = (np.array([record.seconds for record in some]) for some in _some(store.records()))
        member("seconds", "<f8", (count,), seconds)
        member("about", text.dtype, (), iter([text]))


def _write_parquet(store: EmbeddingStore, path: Path, about: Mapping[str, Any], centres: Centres | None) -> None:
    times = [] if centres is None else [("timestamp_ms", pa.float32())]
    schema = pa.schema(
        [("path", pa.string()), ("seconds", pa.float64()), *times, ("embedding", pa.list_(pa.float32(), store.dim))],
        metadata={"about": json.dumps(about)},
    )
    plain = ["path", "seconds", *(name for name, _ in times)]
    # Python's own file, whose errors carry the number of a full disk
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["path"], write_statistics=plain) as writer,
    ):
        for records, steps, embeddings in _row_blocks(store):
            columns = {
                "path": pa.array([record.path for record in records], pa.string()),
                "seconds": pa.array([record.seconds for record in records], pa.float64()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), store.dim),
            }
            if centres is not None:
                columns["timestamp_ms"] = pa.array(centres(steps), pa.float32())
            writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))


def _row_blocks(store: EmbeddingStore) -> Iterator[tuple[list[FileRecord], NDArray[np.int64], NDArray[np.float32]]]:
    """ROWS rows at a time, in order of files: the file of each row, its step in the file, the embeddings."""
    records, steps, rows = list[FileRecord](), list[int](), list[NDArray[np.float32]]()
    for record in store.records():
        for step in range(0, record.rows, ROWS):
            stop = min(step + ROWS, record.rows)
            rows.append(store.read(record.first_row + step, record.first_row + stop))
            records += [record] * (stop - step)
            steps += range(step, stop)
            if len(records) >= ROWS:
                yield records, np.array(steps, np.int64), np.concatenate(rows)
                records, steps, rows = [], [], []
    if records:
        yield records, np.array(steps, np.int64), np.concatenate(rows)


def _write_zarr(store: EmbeddingStore, path: Path, about: Mapping[str, Any], centres: Centres | None) -> None:
    """Embeddings, each chunk written once, and what is known of the files."""
    group = zarr.create_group(path, overwrite=True)
    rows = max(1, CHUNK_BYTES // (4 * store.dim))
    embeddings: Any = group.create_array(
        "embeddings", shape=(store.rows, store.dim), chunks=(rows, store.dim), dtype="float32", compressors=None
    )
    for first in range(0, store.rows, rows):
        embeddings[first : first + rows] = store.read(first, min(first + rows, store.rows))
    kinds: dict[str, Any] = {"path": np.dtypes.StringDType(), "seconds": np.dtype("f8")}
    if centres is not None:
        kinds |= {"first_row": np.dtype("i8"), "rows": np.dtype("i8")}
    made: dict[str, Any] = {
        name: group.create_array(name, shape=(0,), chunks=(FILES,), dtype=str if name == "path" else kind)
        for name, kind in kinds.items()
    }
    for records in _some(store.records(), FILES):
        for name, kind in kinds.items():
            made[name].append(np.array([getattr(record, name) for record in records], kind))
    if centres is not None:
        plain = np.memmap(store.folder / "times.f32", np.float32, "w+", shape=(store.rows,))
        for record in store.records():
            plain[record.first_row : record.first_row + record.rows] = centres(np.arange(record.rows))
        times: Any = group.create_array("timestamp_ms", shape=(store.rows,), chunks=(STEPS,), dtype="float32")
        for first in range(0, store.rows, STEPS):
            times[first : first + STEPS] = plain[first : first + STEPS]
    group.attrs["about"] = dict(about)


def _some(records: Iterator[FileRecord], count: int = ROWS) -> Iterator[list[FileRecord]]:
    while some := list(islice(records, count)):
        yield some
