"""The journal of a set in the making: what is known of it, from which it resumes after any interruption.

OUT.partial/journal/request.json   the request; a different request does not resume this set
OUT.partial/journal/headers.jsonl  headers of the files, each with the file's size and time, a block a line
OUT.partial/journal/plan           the Plan.digest() of which the shards are
OUT.partial/journal/NAME.parquet   written when NAME.tar and NAME.idx have their names: their clips and rejections
OUT.partial/journal/sent.jsonl     of a set behind a URL: the shards that are there, one a line; they may be gone here
OUT.partial/journal/making/        shards being written

A finished part of a set keeps its journal, from which it is merged. What cannot be read of a line or of a NAME.parquet
is made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from unfused_fast.errors import UserError
from unfused_fast.json_files import is_count, read_json
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.packing.pack_shard import DoneShard, Header
from unfused_fast.shards.sets.shard_files import check_index, index_path, replace_file
from unfused_fast.shards.sets.table import DONE_SCHEMA
from unfused_fast.shards.sources.reasons import Reason, Rejected

_ABOUT = b"unfused"


class Sent(NamedTuple):
    """A shard behind the URL."""

    first_id: int
    """Of its clips."""
    files: Mapping[str, tuple[Any, ...]]
    """Name -> size, and the server's digest of the content."""


class Journal:
    """What is known of a set that is unfinished, or of a finished part of one."""

    def __init__(self, set_folder: Path) -> None:
        """Of the set in `set_folder`; nothing is read or written yet."""
        self.set_folder, self.folder = set_folder, set_folder / "journal"
        self.making = self.folder / "making"
        self.request: Mapping[str, Any] = {}
        self.owner = ""
        """A name that no other journal has."""
        self.sent: dict[str, Sent] = {}
        """The shards behind the URL, by name."""

    @property
    def begun(self) -> dict[str, Any]:
        """What begin() kept; empty: there is nothing that this version can resume."""
        path = self.folder / "request.json"
        try:
            kept = read_json(path) if path.is_file() else {}
            sound = isinstance(kept["owner"], str) and isinstance(kept["request"], dict)
        except (ValueError, TypeError, KeyError):
            return {}
        return dict(kept) if sound else {}

    @property
    def stopped_at_once(self) -> bool:
        """Whether nothing is there but what a run leaves that was killed before it had begun."""
        first = (self.folder, self.making, self.folder / "request.json.new")
        return all(path in first for path in self.set_folder.rglob("*"))

    def begin(self, request: Mapping[str, Any], replaces: bool, shown: str) -> None:
        """Resumes what is there, or starts the journal.

        Args:
            replaces: the set, once it is complete, may replace another.
            shown: name of the set in errors.

        Raises:
            UserError: what is there was started with different options.
        """
        kept = self.begun or {"request": dict(request), "owner": os.urandom(8).hex()}
        before = kept["request"]
        different = [
            f"{name.replace('_', ' ')} {before.get(name)} there, {request.get(name)} now"
            for name in sorted({*before, *request})
            if before.get(name) != request.get(name)
        ]
        if different:
            raise UserError(
                f"{shown}: unfinished, and started with different options ({'; '.join(different)}); use those to "
                "finish it, or start again with --overwrite"
            )
        shutil.rmtree(self.making, ignore_errors=True)
        self.making.mkdir(parents=True)
        replace_file(self.folder / "request.json", json.dumps({**kept, "replaces": replaces}, indent=2).encode())
        self.request, self.owner, self.sent = request, kept["owner"], self._sent()

    def headers(self, sizes: Mapping[int, int]) -> dict[int, list[Header]]:
        """The blocks of headers that were read: number of the first file -> what was found.

        Args:
            sizes: of all blocks: number of the first file -> files; what does not fit is read again.
        """
        found: dict[int, list[Header]] = {}
        for line in self._lines("headers.jsonl"):
            with suppress(ValueError, TypeError):
                first, values = line
                if len(values) == sizes.get(first):
                    found[first] = [_header(*value) for value in values]
        return found

    def add_headers(self, first: int, headers: Sequence[Header]) -> None:
        """Keeps a block of headers."""
        values = [
            (found.reason, found.detail, state) if isinstance(found, Rejected) else (found.frames, found.rate_hz, state)
            for found, state in headers
        ]
        self._add_line("headers.jsonl", (first, values))

    def begin_plan(self, plan: str) -> None:
        """Deletes the shards of another plan, of before some files changed; the URL may still have theirs."""
        path = self.folder / "plan"
        if path.is_file() and path.read_bytes() == plan.encode():
            return
        for name in list(self.sent):
            self.forget_sent(name)
        for made in (*self.folder.glob("*.parquet"), *self.set_folder.glob("*.tar"), *self.set_folder.glob("*.idx")):
            made.unlink()
        replace_file(path, plan.encode())

    def add_sent(self, name: str, sent: Sent) -> None:
        """Keeps that a shard is behind the URL."""
        self.sent[name] = sent
        self._add_line("sent.jsonl", (name, *sent))

    def forget_sent(self, name: str) -> None:
        """Keeps that a shard has to be sent, although it may have been."""
        if self.sent.pop(name, None) is not None:
            self._add_line("sent.jsonl", (name, 0, {}))

    def _sent(self) -> dict[str, Sent]:
        sent: dict[str, Sent] = {}
        for line in self._lines("sent.jsonl"):
            with suppress(ValueError, TypeError, AttributeError):
                name, first_id, files = line
                sent.pop(name, None)
                if is_count(first_id) and {path.name for path in self.files(name)} == files.keys():
                    sent[name] = Sent(first_id, {file: tuple(facts) for file, facts in files.items()})
        return sent

    def _lines(self, name: str) -> Iterator[Any]:
        path = self.folder / name
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # empty, cut off by a kill, or none of ours
                continue
            yield value

    def _add_line(self, name: str, value: Any) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(value)}")

    def temporary(self, name: str) -> Path:
        """Where a tar is written; each call gives another, so that a process of a lost node harms nothing."""
        return self.making / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.tar"

    def publish(self, tar: Path, done: DoneShard) -> None:
        """Gives a shard whose tar is at `tar` its name, and notes that it is there, and not behind the URL."""
        import pyarrow.parquet as pq

        self.forget_sent(done.name)
        for new, path in zip((tar, index_path(tar)), self.files(done.name), strict=True):
            if done.bytes:
                new.replace(path)
            else:
                new.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # of an earlier run, from other sources
        about = json.dumps({"rejected": done.rejected, "bytes": done.bytes, "origin": done.origin}).encode()
        note = self.making / f"{done.name}.parquet"
        with note.open("wb") as file:  # Python's own file, whose errors have the error number of a full disk
            pq.write_table(done.clips.replace_schema_metadata({_ABOUT: about}), file, compression="zstd")
        note.replace(self.folder / note.name)

    def done(self, name: str) -> DoneShard | None:
        """A finished shard; None: it is missing, incomplete or damaged, for example after a power cut."""
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.folder / f"{name}.parquet") as file:
                table = file.read()
            table.validate(full=True)
            about = json.loads(table.schema.metadata[_ABOUT])
            rejected = [(str(source), int(piece), str(text)) for source, piece, text in about["rejected"]]
            done = DoneShard(name, table, rejected, int(about["bytes"]), tuple(about.get("origin", ())))
            if (table.schema.names, table.schema.types) != (DONE_SCHEMA.names, DONE_SCHEMA.types):
                return None
            if name in self.sent:
                return done
            size = sum(path.stat().st_size for path in self.files(name) if path.is_file())
            clips = len(check_index(*self.files(name))) if done.bytes else 0
        except PermissionError:
            raise
        except (OSError, pa.ArrowException, UserError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None
        return done if (size, clips) == (done.bytes, table.num_rows) else None

    def files(self, name: str) -> tuple[Path, Path]:
        """Tar and index of a shard."""
        tar = self.set_folder / f"{name}.tar"
        return tar, index_path(tar)


def _header(first: Any, second: Any, state: list[int]) -> Header:
    """What add_headers() kept of a file. Raises ValueError: it is something else."""
    if isinstance(first, str) and isinstance(second, str):
        return Header(Rejected(Reason(first), second), state)
    if not (is_count(first) and is_count(second) and second):
        raise ValueError("no header")
    return Header(Probe(first, second), state)
