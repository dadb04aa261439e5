"""OUT.partial, where the rows of `embed` are saved block by block until they are published.   D features.

OUT.partial/NUMBER.rows  float32 rows (n, D) of a block of files; NUMBER is its first file
OUT.partial/NUMBER.json  the request and the block's files, written last: without it the block is not saved

Each of several ranks saves blocks of its own; rank 0 reads all of them, and publishes.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from unfused_fast.console import console, counted
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError, cause, escaped, unreadable
from unfused_fast.json_files import is_count, is_number, read_json
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.sets.shard_files import replace_file

LOCK = "lock"
"""Locked by the process that writes, or by the first of several."""
_OURS = re.compile(rf"{LOCK}|replaced|rejected\.csv|result-\w+|\d+\.(rows|json(\.new)?)|\..+")
"""Names in OUT.partial; hidden ones are of the file system."""


class DoneFile(NamedTuple):
    """A file that is embedded, or cannot be used."""

    path: str
    seconds: float
    rows: int
    """Rows of its block that are its own, which mean nothing where it cannot be used."""
    reason: str = ""
    """Why it cannot be used, in general; and in particular:"""
    detail: str = ""


class EmbeddingParts:
    """OUT.partial. Saved blocks remain, whatever ends the program."""

    def __init__(self, out: Path, request: Mapping[str, Any], dim: int, restart: bool, ranks: Ranks = ALONE) -> None:
        """Creates the folder, or resumes an unfinished one, with a message; with `restart` starts again.

        Args:
            request: encoder, files and options; only the same request is resumed, on any number of ranks.

        Raises:
            UserError: OUT.partial is of another request or damaged, or holds other files, another process is writing to
                it, or it cannot be written.
        """
        self.out, self.folder, self.request, self.dim, self._ranks = out, partial_path(out), dict(request), dim, ranks
        self.reasons, self.rows = Counter[str](), 0
        """How many files cannot be used, by reason; rows of the others."""
        self._blocks = dict[int, list[DoneFile]]()
        """First file of a block -> its files, in order."""
        self._lock = FileLock(self.folder / LOCK, timeout=0)
        ranks.first(lambda: self._open(restart))
        try:
            ranks.every(self.read)
        except UserError:
            self._lock.release()
            raise
        if self.done:
            console.print(f"{out}: {counted(self.done, 'file')} done; resuming (--overwrite starts again)")

    @property
    def files(self) -> list[DoneFile]:
        """All files of the saved blocks, in order."""
        return [file for block in self._blocks.values() for file in block]

    @property
    def done(self) -> int:
        """How many they are."""
        return sum(map(len, self._blocks.values()))

    def missing(self, size: int) -> list[range]:
        """The files that no saved block has, in ranges that hold no multiple of `size` but as their first."""
        found, end = list[range](), 0
        for first, files in [*self._blocks.items(), (self.request["files"], [])]:
            while end < first:
                stop = min(first, (end // size + 1) * size)
                found.append(range(end, stop))
                end = stop
            end = first + len(files)
        return found

    def _open(self, restart: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in self.folder.iterdir() if not _OURS.fullmatch(path.name)]
            if others:
                raise UserError(
                    f"{self.folder}: it holds {escaped(min(others))}, which embed did not write; move it away, or name "
                    "another --out"
                )
            self._lock.acquire()
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK and (restart or not path.with_suffix(".json").exists()):
                    path.unlink()
        except Timeout:
            raise UserError(
                f"{self.out}: another process is writing to it; wait for it, or name another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise UserError(f"{self.out}: cannot be written ({cause(error)}); name another --out") from error

    def read(self) -> None:
        """Reads which blocks are saved, of all ranks."""
        self._blocks.clear()
        self.reasons.clear()
        self.rows, end = 0, 0
        for path in sorted(self.folder.glob("*.json")):
            files = self._read(path, end)
            self._add(int(path.stem), files)
            end = int(path.stem) + len(files)

    def rows_path(self, first: int) -> Path:
        """Where the rows of a block belong, before it is saved."""
        return self.folder / f"{first:012}.rows"

    def save(self, first: int, files: list[DoneFile]) -> None:
        """Saves a block, after those before it, whose rows are in place."""
        path = self.rows_path(first)
        if path.exists():
            to_disk(path)
        replace_file(path.with_suffix(".json"), json.dumps({"request": self.request, "files": files}).encode())
        self._add(first, files)

    def embeddings(self, size: int) -> Iterator[NDArray[np.float32]]:
        """The rows (n, D) of the files that are embedded, `size` at a time, and the rest of them."""
        waiting = np.empty((0, self.dim), np.float32)
        for first, files in self._blocks.items():
            kept = np.flatnonzero(np.repeat([not file.reason for file in files], [file.rows for file in files]))
            for start in range(0, len(kept), size):
                every = np.memmap(self.rows_path(first), np.float32, "r").reshape(-1, self.dim)
                waiting = np.concatenate([waiting, every[kept[start : start + size]]])
                if len(waiting) >= size:
                    yield waiting[:size]
                    waiting = waiting[size:]
        if len(waiting):
            yield waiting

    def publish(self, made: Path) -> None:
        """Moves `made` from the folder to OUT, with the list of rejected files next to it, and deletes the folder.

        Raises:
            UserError: a folder that is not to be replaced is there now.
        """
        check_place(self.out, overwrite=True)
        new = self.folder / "rejected.csv"
        with new.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((file.path, file.detail) for file in self.files if file.reason)
        for path in (*made.rglob("*"), made, new):
            to_disk(path)
        if self.out.is_dir():
            self.out.rename(self.folder / "replaced")
        made.replace(self.out)
        new.replace(rejected_path(self.out))
        to_disk(self.out.absolute().parent)
        self._lock.release()  # first: NFS keeps a file that is open, and so its folder
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Releases the folder, and deletes it unless a usable file is done; on rank 0."""
        if self._ranks.leads:
            self._lock.release()
            if not self.rows and (not self._ranks.together or not any(self.folder.glob("*.json"))):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path, end: int) -> list[DoneFile]:
        """The files of a block after another that ends before file `end`."""
        try:
            found = read_json(path)
            files, rows = [DoneFile(*file) for file in found["files"]], path.with_suffix(".rows")
            if int(path.stem) < end:
                raise ValueError(f"the block before it has files up to {end}")
            if not (isinstance(found["request"], dict) and all(map(_is_sound, files))):
                raise ValueError("not what embed writes")
            size = 4 * self.dim * sum(file.rows for file in files)
            differing = [name for name in self.request if self.request[name] != found["request"].get(name)]
            if not differing and size and rows.stat().st_size != size:
                raise ValueError(f"{rows.name} does not have {size} bytes")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise unreadable(path, error, f"delete {self.folder} and start again") from error
        if differing:
            raise UserError(
                f"{self.out}: unfinished, with different {', '.join(differing)}; give the same files, encoder and "
                "options to resume, start again with --overwrite, or name another --out"
            )
        return files

    def _add(self, first: int, files: list[DoneFile]) -> None:
        self._blocks[first] = files
        self.rows += sum(file.rows for file in files if not file.reason)
        self.reasons.update(file.reason for file in files if file.reason)


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError: OUT is there without `overwrite`, or is a folder that `embed` did not write."""
    if out.is_dir() and not _is_zarr_of_ours(out):
        raise UserError(f"{out}: a folder that is not an output of embed, so it is not replaced; choose another path")
    if out.exists() and not overwrite:
        unfinished = any(partial_path(out).glob("*.json"))
        more = ", or resume its unfinished replacement with --resume --overwrite" if unfinished else ""
        raise UserError(f"{out}: it exists; choose another path, or replace it with --overwrite{more}")


def _is_zarr_of_ours(folder: Path) -> bool:
    try:
        return folder.suffix.lower() == ".zarr" and "encoder" in read_json(folder / "zarr.json")["attributes"]["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_sound(file: DoneFile) -> bool:
    """Whether the values of a file, from JSON, are of the types that they should have."""
    texts = (file.path, file.reason, file.detail)
    return all(isinstance(text, str) for text in texts) and is_number(file.seconds) and is_count(file.rows)


def rejected_path(out: Path) -> Path:
    """Path of the list of files that could not be used."""
    return out.with_name(out.name + ".rejected.csv")


def partial_path(out: Path) -> Path:
    """Path of the folder of an unfinished run."""
    return out.with_name(out.name + ".partial")
