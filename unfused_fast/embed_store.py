"""Where the embeddings of `embed` grow, block by block, until they are published.   N rows, D features.

OUT.partial/state.json      what was asked for, and how far the other files are whole; replaced after each block
OUT.partial/files.jsonl     a line a file: path, seconds, first row, rows
OUT.partial/rejected.jsonl  a line a file that cannot be used: path, reason, text
OUT.partial/rows.f32        (N, D) little-endian float32, for npz and parquet
OUT.partial/rows.zarr       a zarr v3 group with `embeddings` (N, D), for zarr
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from unfused_fast.checkpoint import write_json
from unfused_fast.errors import UserError
from unfused_fast.shards.building import to_disk

CHUNK_BYTES = 8 * 2**20
"""Most bytes of a chunk of the zarr array."""
_LOGS = ("files.jsonl", "rejected.jsonl", "rows.f32")


class FileRecord(NamedTuple):
    """A file that is embedded."""

    path: str
    seconds: float
    first_row: int
    rows: int


class EmbeddingStore:
    """OUT.partial. What is committed stays, whatever ends the program."""

    def __init__(self, out: Path, request: Mapping[str, Any], dim: int, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes it over where it was left.

        Args:
            request: what is asked for; only the same is gone on with.

        Raises:
            UserError: OUT is there without `overwrite`, OUT.partial without `resume` or of another request, another
                process writes to it, or the disk refuses.
        """
        self.out, self.dim, self.is_zarr = out, dim, out.suffix == ".zarr"
        self.folder = out.with_name(out.name + ".partial")
        self.request = json.loads(json.dumps(dict(request)))
        self.rows = self.files_done = 0
        self.reasons = Counter[str]()
        if out.exists() and not overwrite:
            raise UserError(f"{out}: it exists; name another place, or replace it with --overwrite")
        state = self._recorded()
        if state is not None and not (resume or overwrite):
            raise UserError(
                f"{out}: unfinished, {state['files_done']} files are done; go on with --resume, or start again with "
                "--overwrite"
            )
        if state is not None and resume and state["request"] != self.request:
            names = [name for name in self.request if self.request[name] != state["request"].get(name)]
            raise UserError(
                f"{out}: --resume goes on with the same files, encoder and options only, but other are: "
                f"{', '.join(names)}; name another --out, or start again with --overwrite"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            self._take_lock()
            if state is None or not resume:
                self._begin()
            else:
                self._go_on(state)
            self._logs = {name: (self.folder / name).open("ab") for name in _LOGS}
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); name another --out") from error

    def append(self, embeddings: NDArray[np.float32]) -> int:
        """(n, D) behind the rows that are there -> the number of the first."""
        first, self.rows = self.rows, self.rows + len(embeddings)
        if self.is_zarr:
            self._array.resize((self.rows, self.dim))
            self._array[first : self.rows] = embeddings
        else:
            self._logs["rows.f32"].write(np.ascontiguousarray(embeddings, "<f4").data)
        return first

    def take_back(self, rows: int) -> None:
        """Forgets all rows behind the first `rows`, which are not committed yet."""
        self.rows = rows
        if self.is_zarr:
            self._array.resize((rows, self.dim))
        else:
            self._logs["rows.f32"].truncate(rows * 4 * self.dim)

    def commit(self, files: list[FileRecord], rejected: list[tuple[str, str, str]], files_done: int) -> None:
        """What was appended stays. Args: rejected: path, reason, text; files_done: rows of the source, from 0."""
        self._log("files.jsonl", [list(record) for record in files])
        self._log("rejected.jsonl", [list(each) for each in rejected])
        for log in self._logs.values():
            log.flush()
            os.fsync(log.fileno())
        self.reasons.update(reason for _, reason, _ in rejected)
        self.files_done = files_done
        self._save()

    def close(self) -> None:
        """Lets the folder go; it stays for --resume."""
        for log in self._logs.values():
            log.close()
        os.close(self._lock)

    def records(self) -> Iterator[FileRecord]:
        """Every file that is embedded, in order."""
        with (self.folder / "files.jsonl").open(encoding="utf-8") as stream:
            yield from (FileRecord(*json.loads(line)) for line in stream)

    def rejections(self) -> Iterator[tuple[str, str, str]]:
        """Every file that is not: path, reason, text."""
        with (self.folder / "rejected.jsonl").open(encoding="utf-8") as stream:
            yield from (tuple(json.loads(line)) for line in stream)

    def read(self, first: int, stop: int) -> NDArray[np.float32]:
        """(stop - first, D), of npz and parquet."""
        count = (stop - first) * self.dim
        return np.fromfile(self.folder / "rows.f32", "<f4", count, offset=4 * self.dim * first).reshape(-1, self.dim)

    def publish(self, made: Path) -> None:
        """Writes OUT's rejected.csv, puts `made` in OUT's place, and deletes the folder."""
        table = self.out.with_suffix(".rejected.csv")
        new = self.folder / "rejected.csv"
        with new.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((path, text) for path, _, text in self.rejections())
        for path in (*made.rglob("*"), made, new):
            to_disk(path)
        new.replace(table)
        if self.out.is_dir():
            old = self.folder / "replaced"
            self.out.rename(old)
        made.replace(self.out)
        to_disk(self.out.absolute().parent)
        shutil.rmtree(self.folder)

    def _log(self, name: str, lines: list[list[Any]]) -> None:
        self._logs[name].write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _save(self) -> None:
        sizes = {name: (self.folder / name).stat().st_size for name in _LOGS}
        state = {"request": self.request, "rows": self.rows, "files_done": self.files_done, "sizes": sizes}
        write_json(self.folder / "state.json", {**state, "reasons": dict(self.reasons)})

    def _recorded(self) -> dict[str, Any] | None:
        path = self.folder / "state.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete {self.folder} and start again") from error

    def _begin(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name in _LOGS:
            (self.folder / name).touch()
        if self.is_zarr:
            chunk = max(1, CHUNK_BYTES // (4 * self.dim))
            group = zarr.create_group(self.folder / "rows.zarr")
            self._array: Any = group.create_array(
                "embeddings", shape=(0, self.dim), chunks=(chunk, self.dim), dtype="float32", compressors=None
            )
        self._save()

    def _go_on(self, state: dict[str, Any]) -> None:
        self.rows, self.files_done = state["rows"], state["files_done"]
        self.reasons.update(state["reasons"])
        for name, size in state["sizes"].items():
            os.truncate(self.folder / name, size)
        if self.is_zarr:
            self._array = zarr.open_group(self.folder / "rows.zarr", mode="r+")["embeddings"]
            self._array.resize((self.rows, self.dim))

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"{self.out}: another process writes to it; wait for it, or name another --out") from None
        except OSError:  # a file system without locks
            return
