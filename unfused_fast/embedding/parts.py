"""OUT.partial, where the embeddings of `embed` are saved block by block until they are published.   D features.

OUT.partial/NUMBER.parquet  the rows of a block, as in a parquet result; in its metadata the request, the block's files,
and those that cannot be used. NUMBER counts the files up to its end.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unfused_fast.console import console
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.shards.packing.building import to_disk

Centres = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""(n,) numbers of steps -> (n,) milliseconds."""
ROWS = 1024
"""Rows that are read at once, and smallest row group of a parquet result."""
Rejection = tuple[str, str, str]
"""Path, reason, text of a file that cannot be used."""


class EmbeddedFile(NamedTuple):
    """A file that is embedded."""

    path: str
    seconds: float
    rows: int


class SavedBlock(NamedTuple):
    """A part."""

    request: dict[str, Any]
    files: list[EmbeddedFile]
    rejected: list[Rejection]
    table: pq.ParquetFile
    """The rows of `files`."""


class EmbeddingParts:
    """OUT.partial. Saved blocks remain, whatever ends the program."""

    def __init__(self, out: Path, request: Mapping[str, Any], dim: int, centres: Centres | None, restart: bool) -> None:
        """Creates the folder, or resumes an unfinished one, with a message; with `restart` starts again.

        Args:
            request: encoder, files and options; only the same request is resumed.
            centres: times of the steps, where rows are steps of files.

        Raises:
            UserError: OUT.partial is of another request or damaged, another process is writing to it, or it cannot be
                written.
        """
        self.out, self.folder, self.centres, self.dim = out, _folder(out), centres, dim
        times = [] if centres is None else [("timestamp_ms", pa.float32())]
        columns = [("path", pa.string()), ("seconds", pa.float64()), *times, ("embedding", pa.list_(pa.float32(), dim))]
        self.schema = pa.schema(columns, {"request": json.dumps(dict(request))})
        self.rows = self.files_done = 0
        self.reasons = Counter[str]()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif restart or path.suffix != ".parquet":
                    path.unlink()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({cause(error)}); name another --out") from error
        try:
            for block in self.blocks():
                if names := [name for name in request if request[name] != block.request.get(name)]:
                    raise UserError(
                        f"{out}: unfinished, with different {', '.join(names)}; give the same files, encoder and "
                        "options to resume, start again with --overwrite, or name another --out"
                    )
                self._count(block.files, block.rejected)
        except UserError:
            os.close(self._file)
            raise
        if self.files_done:
            console.print(f"{out}: {self.files_done} files were done; resuming (--overwrite starts again)")

    def save(
        self, files: list[EmbeddedFile], rejected: list[Rejection], embeddings: Iterable[NDArray[np.float32]]
    ) -> None:
        """Saves the next block. `embeddings` are (n, D), in parts, in the order of `files`."""
        counts = [file.rows for file in files]
        file_of = np.repeat(np.arange(len(files)), counts)
        step_of = np.arange(len(file_of)) - np.repeat(np.cumsum([0, *counts])[:-1], counts)
        path = self.folder / f"{self.files_done + len(files) + len(rejected):012}.parquet"
        making, first = path.with_suffix(".new"), 0
        with parquet_writer(making, self.schema, "none") as writer:
            for some in embeddings:
                rows = slice(first, first := first + len(some))
                columns: dict[str, Any] = {
                    "path": [files[number].path for number in file_of[rows]],
                    "seconds": [files[number].seconds for number in file_of[rows]],
                    "embedding": pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), self.dim),
                }
                if self.centres is not None:
                    columns["timestamp_ms"] = np.asarray(self.centres(step_of[rows]), np.float32)
                writer.write_table(pa.table({name: columns[name] for name in self.schema.names}, self.schema))
            writer.add_key_value_metadata({"files": json.dumps(files), "rejected": json.dumps(rejected)})
        to_disk(making)
        making.replace(path)
        self._count(files, rejected)

    def blocks(self) -> Iterator[SavedBlock]:
        """All saved blocks, in order."""
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                with pq.ParquetFile(path) as table:
                    found = table.metadata.metadata
                    request, files, rejected = (json.loads(found[name]) for name in (b"request", b"files", b"rejected"))
                    yield SavedBlock(request, [EmbeddedFile(*file) for file in files], rejected, table)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise unreadable(path, error, f"delete {self.folder} and start again") from error

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """(n, D) of all rows, in parts."""
        for block in self.blocks():
            for batch in block.table.iter_batches(ROWS, columns=["embedding"]):
                yield batch.column(0).flatten().to_numpy().reshape(-1, self.dim)

    def publish(self, made: Path) -> None:
        """Moves `made` from the folder to OUT, with the list of rejected files next to it, and deletes the folder."""
        new = self.folder / "rejected.csv"
        with new.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((path, text) for block in self.blocks() for path, _, text in block.rejected)
        for path in (*made.rglob("*"), made, new):
            to_disk(path)
        if self.out.is_dir():
            self.out.rename(self.folder / "replaced")
        made.replace(self.out)
        new.replace(rejected_path(self.out))
        to_disk(self.out.absolute().parent)
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Releases the folder, and deletes it unless a usable file is done."""
        if not self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._file)

    def _count(self, files: list[EmbeddedFile], rejected: list[Rejection]) -> None:
        self.rows += sum(file.rows for file in files)
        self.files_done += len(files) + len(rejected)
        self.reasons.update(reason for _, reason, _ in rejected)

    def _lock(self) -> None:
        self._file = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.out}: another process is writing to it; wait for it, or name another --out"
            ) from None
        except OSError:  # a file system without locks
            return


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError: OUT is there without `overwrite`."""
    if out.exists() and not overwrite:
        unfinished = any(_folder(out).glob("*.parquet"))
        more = ", or resume its unfinished replacement with --resume --overwrite" if unfinished else ""
        raise UserError(f"{out}: it exists; choose another path, or replace it with --overwrite{more}")


def rejected_path(out: Path) -> Path:
    """Path of the list of files that could not be used."""
    return out.with_name(out.name + ".rejected.csv")


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, compression: str) -> Iterator[pq.ParquetWriter]:
    """Writes to a Python file object, whose errors have an errno on a full disk."""
    plain = [name for name in schema.names if name != "embedding"]
    settings = {"compression": compression, "use_dictionary": ["path"], "write_statistics": plain}
    with path.open("wb") as file, pq.ParquetWriter(file, schema, **settings) as writer:
        yield writer


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
