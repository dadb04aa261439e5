"""The state of an unfinished set, from which it resumes after any interruption.

OUT.partial/journal/request.json   the request; a different request does not resume this set
OUT.partial/journal/headers.jsonl  headers of the files, a block a line
OUT.partial/journal/NAME.parquet   written when NAME.tar and NAME.idx have their names: their clips and rejections
OUT.partial/journal/NAME.sent      of a set behind a URL: written when both files are there; they may be gone here
OUT.partial/journal/owner          of a set behind a URL: the id by which its writing.json names this journal
OUT.partial/journal/making/        shards being written
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.packing.pack_shard import DoneShard
from unfused_fast.shards.sets.shard_files import index_path, replace_file
from unfused_fast.shards.sources.reasons import Reason, Rejected

_ABOUT = b"unfused"


class Journal:
    """The journal of one set."""

    def __init__(self, folder: Path) -> None:
        """Of the set being made in `folder`; nothing is read or written yet."""
        self.set_folder, self.folder = folder, folder / "journal"
        self._request, self._headers = self.folder / "request.json", self.folder / "headers.jsonl"
        self.making = self.folder / "making"

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return self._request.is_file()

    @property
    def replaces(self) -> bool:
        """Whether the set, once it is complete, may replace another."""
        return self.begun and bool(json.loads(self._request.read_bytes())["replaces"])

    def begin(self, request: Mapping[str, Any], replaces: bool, shown: str) -> None:
        """Resumes what is there, or starts the journal. Args: shown: name of the set in errors.

        Raises:
            UserError: what is there was started with different options.
        """
        if self.begun:
            before = json.loads(self._request.read_bytes())["request"]
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
        replace_file(self._request, json.dumps({"request": dict(request), "replaces": replaces}, indent=2).encode())

    def headers(self) -> dict[int, list[Probe | Rejected]]:
        """The blocks of headers that were read: number of the first file -> what was found."""
        found: dict[int, list[Probe | Rejected]] = {}
        for line in self._headers.read_text(encoding="utf-8").split("\n") if self._headers.is_file() else ():
            try:
                first, probes = json.loads(line)
            except ValueError:  # empty, or cut off by a kill
                continue
            found[first] = [
                Probe(*probe) if isinstance(probe[0], int) else Rejected(Reason(probe[0]), probe[1]) for probe in probes
            ]
        return found

    def add_headers(self, first: int, probes: Sequence[Probe | Rejected]) -> None:
        """Keeps a block of headers."""
        values = [
            (str(probe.reason), probe.detail) if isinstance(probe, Rejected) else (probe.frames, probe.rate_hz)
            for probe in probes
        ]
        with self._headers.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps((first, values))}")

    def temporary(self, name: str) -> Path:
        """Where a tar is written; each call gives another, so that a process of a lost node harms nothing."""
        return self.making / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.tar"

    def publish(self, tar: Path, done: DoneShard) -> None:
        """Gives a shard whose tar is at `tar` its name, and notes that it is there."""
        for new, path in zip((tar, index_path(tar)), self._files(done.name), strict=True):
            new.replace(path) if done.bytes else new.unlink()
        self.note(done)

    def note(self, done: DoneShard) -> None:
        """Notes that the files of a shard are there."""
        about = json.dumps({"rejected": done.rejected, "bytes": done.bytes}).encode()
        new = self.making / f"{done.name}.parquet"
        with new.open("wb") as file:  # Python's own file, whose errors have the error number of a full disk
            pq.write_table(done.clips.replace_schema_metadata({_ABOUT: about}), file, compression="zstd")
        new.replace(self.folder / new.name)

    def done(self, name: str) -> DoneShard | None:
        """The record of a finished shard; None: it is missing or incomplete, for example after a power cut."""
        try:
            table = pq.read_table(self.folder / f"{name}.parquet")
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        about = json.loads(table.schema.metadata[_ABOUT])
        sizes = [file.stat().st_size if file.is_file() else 0 for file in self._files(name)]
        if sum(sizes) != about["bytes"] and self.sent(name) is None:
            return None
        return DoneShard(name, table, [tuple(row) for row in about["rejected"]], about["bytes"])

    def _files(self, name: str) -> tuple[Path, Path]:
        tar = self.set_folder / f"{name}.tar"
        return tar, index_path(tar)

    # Of a set behind a URL

    @property
    def owner(self) -> str:
        """A name that no other journal has; made when first asked for."""
        path = self.folder / "owner"
        if not path.is_file():
            replace_file(path, os.urandom(8).hex().encode())
        return path.read_text(encoding="ascii")

    def note_sent(self, name: str, files: Mapping[str, Sequence[Any]]) -> None:
        """Notes that the files of a shard are behind the URL: name -> size, and the server's digest of the content."""
        replace_file(self.folder / f"{name}.sent", json.dumps(files).encode())

    def sent(self, name: str) -> dict[str, list[Any]] | None:
        """What note_sent() kept; None: nothing."""
        path = self.folder / f"{name}.sent"
        known: dict[str, list[Any]] | None = json.loads(path.read_bytes()) if path.is_file() else None
        return known

    def all_sent(self) -> list[str]:
        """Names of the shards that note_sent() knows."""
        return [path.stem for path in self.folder.glob("*.sent")]

    def forget_sent(self, name: str) -> None:
        """Undoes note_sent(): the shard is sent again, and made again if its files are gone here."""
        (self.folder / f"{name}.sent").unlink()

    def drop(self, name: str) -> None:
        """Deletes the files of a shard that was sent."""
        for path in self._files(name):
            path.unlink(missing_ok=True)

    def end(self) -> None:
        """Deletes the journal: the set is complete."""
        shutil.rmtree(self.folder)
