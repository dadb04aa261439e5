"""Where the embeddings of `embed` grow, block by block, until they are published.   N rows, D features.

OUT.partial/state.json      what was asked for, and how far the other files are whole; replaced after each block
OUT.partial/files.jsonl     a line a file: path, seconds, first row, rows
OUT.partial/rejected.jsonl  a line a file that cannot be used: path, reason, text
OUT.partial/rows.f32        (N, D) little-endian float32
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
from numpy.typing import NDArray

from unfused_fast.console import console
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import read_json
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.training import write_json

_LOGS = ("files.jsonl", "rejected.jsonl", "rows.f32")


class FileRecord(NamedTuple):
    """A file that is embedded."""

    path: str
    seconds: float
    first_row: int
    rows: int


def rejected_path(out: Path) -> Path:
    """Where the files that could not be used are named."""
    return out.with_name(out.name + ".rejected.csv")


def check_place(out: Path, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """What OUT.partial says of itself; None where nothing is unfinished.

    Raises:
        UserError: OUT is there without `overwrite`; with `resume` OUT.partial cannot be read.
    """
    state = _recorded(_folder(out), resume)
    if out.exists() and not overwrite:
        if state is None:
            raise UserError(f"{out}: it exists; name another place, or replace it with --overwrite")
        raise UserError(
            f"{out}: it exists, and what is to replace it is unfinished, {state['files_done']} files are done; go on "
            "with --resume --overwrite, start again with --overwrite, or name another place"
        )
    return state


class EmbeddingStore:
    """OUT.partial. What is committed stays, whatever ends the program."""

    def __init__(self, out: Path, request: Mapping[str, Any], dim: int, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes it over where it was left; without `resume` and `overwrite` also, where the
        request is the same, and replaces it where it is another. Either is said in a line.

        Args:
            request: what is asked for; only the same is gone on with.

        Raises:
            UserError: as check_place; with `resume` an OUT.partial of another request; another process writes to it,
                or the disk refuses.
        """
        self.out, self.dim, self.folder = out, dim, _folder(out)
        self.request = json.loads(json.dumps(dict(request)))
        self.rows = self.files_done = 0
        self.reasons = Counter[str]()
        state = check_place(out, resume, overwrite)
        names = [
            name for name in self.request if state is not None and self.request[name] != state["request"].get(name)
        ]
        if resume and names:
            raise UserError(
                f"{out}: --resume goes on with the same files, encoder and options only, but other are: "
                f"{', '.join(names)}; name another --out, or start again with --overwrite"
            )
        go_on = state is not None and not names and (resume or not overwrite)
        if state is not None and state["files_done"] and not (resume or overwrite):
            done = f"{out}: unfinished, {state['files_done']} files were done"
            other = f"with other {', '.join(names)}, and are replaced"
            console.print(
                f"{done}; going on (--overwrite starts again)" if go_on else f"{done} {other}", style="yellow"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            self._take_lock()
            if state is not None and go_on:
                self._go_on(state)
            else:
                self._begin()
            self._logs = {name: (self.folder / name).open("ab") for name in _LOGS}
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({cause(error)}); name another --out") from error

    def append(self, embeddings: NDArray[np.float32]) -> int:
        """(n, D) behind the rows that are there -> the number of the first."""
        first, self.rows = self.rows, self.rows + len(embeddings)
        self._logs["rows.f32"].write(np.ascontiguousarray(embeddings, "<f4").data)
        return first

    def take_back(self, rows: int) -> None:
        """Forgets all rows behind the first `rows`, which are not committed yet."""
        self.rows = rows
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
        """Lets the folder go; it stays for --resume where a usable file is done."""
        for log in self._logs.values():
            log.close()
        if not self.rows:
            shutil.rmtree(self.folder, ignore_errors=True)
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
        """(stop - first, D) of what is committed."""
        count = (stop - first) * self.dim
        return np.fromfile(self.folder / "rows.f32", "<f4", count, offset=4 * self.dim * first).reshape(-1, self.dim)

    def publish(self, made: Path) -> None:
        """Puts `made` in OUT's place, its list of rejected files beside it, and deletes the folder."""
        new = self.folder / "rejected.csv"
        with new.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((path, text) for path, _, text in self.rejections())
        for path in (*made.rglob("*"), made, new):
            to_disk(path)
        if self.out.is_dir():
            old = self.folder / "replaced"
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed here
            self.out.rename(old)
        made.replace(self.out)
        new.replace(rejected_path(self.out))
        to_disk(self.out.absolute().parent)
        shutil.rmtree(self.folder)

    def _log(self, name: str, lines: list[list[Any]]) -> None:
        self._logs[name].write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _save(self) -> None:
        sizes = {name: (self.folder / name).stat().st_size for name in _LOGS}
        state = {"request": self.request, "rows": self.rows, "files_done": self.files_done, "sizes": sizes}
        write_json(self.folder / "state.json", {**state, "reasons": dict(self.reasons)})

    def _begin(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name in _LOGS:
            (self.folder / name).touch()
        self._save()

    def _go_on(self, state: dict[str, Any]) -> None:
        self.rows, self.files_done = state["rows"], state["files_done"]
        self.reasons.update(state["reasons"])
        for name, size in state["sizes"].items():
            os.truncate(self.folder / name, size)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"{self.out}: another process writes to it; wait for it, or name another --out") from None
        except OSError:  # a file system without locks
            return


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _recorded(folder: Path, needed: bool) -> dict[str, Any] | None:
    """What state.json says; None where there is none. A damaged one is an error where it is `needed`, or else none."""
    path = folder / "state.json"
    try:
        state = read_json(path)
        if not isinstance(state, dict) or not isinstance(state.get("request"), dict) or "files_done" not in state:
            raise ValueError("not what embed writes there")
        return state
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        if not needed:
            return None
        raise unreadable(path, error, f"delete {folder} and start again") from error
    except OSError as error:
        raise unreadable(path, error, f"delete {folder} and start again") from error
