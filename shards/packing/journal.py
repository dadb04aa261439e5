"""What an unfinished set knows of itself, so that it can be gone on with after any end.

OUT.partial/journal/options.json      what was asked for; another wish does not go on with this set
OUT.partial/journal/probes-*.parquet  headers of the files, block by block
OUT.partial/journal/plan.json         shards to make, label names, rejected files: written when all headers are read
OUT.partial/journal/NAME.parquet      written when NAME.tar and NAME.idx are on the disk: their clips and rejections
OUT.partial/journal/NAME.sent         of a set behind a URL: written when tar and index are there; they may be gone here
OUT.partial/journal/owner             of a set behind a URL: what says there that this journal is its maker's
OUT.partial/journal/making/           shards being made
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.packing.pack_shard import Rejection, WrittenShard
from unfused_fast.shards.sets.shard_files import index_path, replace_file
from unfused_fast.shards.sets.table import DONE_SCHEMA
from unfused_fast.shards.sources.reasons import Reason, Rejected

JOURNAL = "journal"

_OPTIONS, _PLAN, _MAKING, _ABOUT = "options.json", "plan.json", "making", b"unfused"
_PROBES_SCHEMA = pa.schema({"frames": pa.int64(), "rate_hz": pa.int64(), "reason": pa.string(), "detail": pa.string()})


@dataclass(frozen=True)
class JournalPlan:
    """What there is to make, once all headers are read."""

    shards: tuple[str, ...]
    """Names of the shards of this pack or part, in order."""
    label_names: tuple[str, ...]
    rejected: tuple[Rejection, ...]
    """By their headers."""
    files: Mapping[str, str]
    """Name -> text of what is written beside the shards."""


@dataclass(frozen=True)
class DoneShard:
    """A shard that is on the disk, or behind the URL where the set is made."""

    name: str
    first_id: int
    """Number that its first clip has in the tar so far."""
    clips: pa.Table
    """DONE_SCHEMA."""
    rejected: list[Rejection]
    bytes: int
    """Of tar and index."""


class Journal:
    """The journal of one set."""

    def __init__(self, folder: Path) -> None:
        """Of the set being made in `folder`; nothing is read or written yet."""
        self.set_folder, self.folder = folder, folder / JOURNAL

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / _OPTIONS).is_file()

    def begin(self, options: Mapping[str, Any], replaces: bool, shown: str) -> None:
        """Goes on with what is there, or starts the journal.

        Args:
            replaces: the set, once it is complete, may replace another.
            shown: what the set is called in errors.

        Raises:
            UserError: what is there was begun with other options.
        """
        path = self.folder / _OPTIONS
        if self.begun:
            before = _read_json(path)["options"]
            if different := [
                f"{name.replace('_', ' ')} {before.get(name)} there, {options.get(name)} now"
                for name in sorted({*before, *options})
                if before.get(name) != options.get(name)
            ]:
                raise UserError(
                    f"{shown}: unfinished, and begun with other options ({'; '.join(different)}); go on with those, "
                    "or begin again with --overwrite"
                )
        shutil.rmtree(self.folder / _MAKING, ignore_errors=True)
        (self.folder / _MAKING).mkdir(parents=True)
        if not self.begun:
            replace_file(path, json.dumps({"options": dict(options), "replaces": replaces}, indent=2).encode())
            to_disk(self.folder)

    @property
    def replaces(self) -> bool:
        """Whether the set, once it is complete, may replace another."""
        return self.begun and bool(_read_json(self.folder / _OPTIONS)["replaces"])

    def probes(self, block: int) -> list[Probe | Rejected] | None:
        """The headers of a block of files, if they were read before."""
        path = self.folder / f"probes-{block:06d}.parquet"
        if not path.is_file():
            return None
        columns = [column.to_pylist() for column in pq.read_table(path).columns]
        return [
            Probe(frames, rate_hz) if reason is None else Rejected(Reason(reason), detail)
            for frames, rate_hz, reason, detail in zip(*columns, strict=True)
        ]

    def add_probes(self, block: int, probes: Sequence[Probe | Rejected]) -> None:
        """Keeps the headers of a block of files."""
        rows = [
            (probe.frames, probe.rate_hz, None, None)
            if isinstance(probe, Probe)
            else (0, 0, str(probe.reason), probe.detail)
            for probe in probes
        ]
        columns = dict(zip(_PROBES_SCHEMA.names, zip(*rows, strict=True), strict=True))
        _write_table(self.folder / f"probes-{block:06d}.parquet", pa.table(columns, schema=_PROBES_SCHEMA))

    def set_plan(self, plan: JournalPlan) -> None:
        """Keeps the plan."""
        replace_file(self.folder / _PLAN, json.dumps(asdict(plan)).encode())

    def plan(self) -> JournalPlan:
        """What set_plan() wrote."""
        value = _read_json(self.folder / _PLAN)
        rejected = tuple((source, number, reason, text) for source, number, reason, text in value["rejected"])
        return JournalPlan(tuple(value["shards"]), tuple(value["label_names"]), rejected, value["files"])

    def place(self, name: str) -> Path:
        """Where the tar of a shard is written; not twice the same, so that a process that is late harms nothing."""
        return self.folder / _MAKING / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.tar"

    def publish(self, name: str, first_id: int, written: WrittenShard) -> None:
        """Brings a shard to the disk, gives it its name, and notes that it is there."""
        tar = self.set_folder / f"{name}.tar"
        clips = pa.table(written.columns, schema=DONE_SCHEMA)
        if clips.num_rows:
            for place, path in ((written.tar, tar), (index_path(written.tar), index_path(tar))):
                to_disk(place)
                place.replace(path)
            to_disk(self.set_folder)
        else:
            written.tar.unlink()
            index_path(written.tar).unlink()
        self.note(DoneShard(name, first_id, clips, written.rejected, written.bytes if clips.num_rows else 0))

    def note(self, done: DoneShard) -> None:
        """Notes that the files of a shard are there."""
        about = {"first_id": done.first_id, "rejected": done.rejected, "bytes": done.bytes}
        table = done.clips.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        _write_table(self.folder / f"{done.name}.parquet", table)

    def done(self, name: str) -> DoneShard | None:
        """What is known of a shard; None: it is not (or not wholly) there."""
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            return None
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[_ABOUT])
        sizes = [file.stat().st_size if file.is_file() else -1 for file in self._files(name)]
        if table.num_rows and sum(sizes) != about["bytes"] and self.sent(name) is None:
            return None
        rejected = [(source, number, reason, text) for source, number, reason, text in about["rejected"]]
        return DoneShard(name, about["first_id"], table, rejected, about["bytes"])

    @property
    def owner(self) -> str:
        """What tells this journal from every other; made when first asked for."""
        path = self.folder / "owner"
        if not path.is_file():
            replace_file(path, os.urandom(8).hex().encode())
        return path.read_text(encoding="ascii")

    def note_sent(self, name: str, files: Mapping[str, Sequence[Any]]) -> None:
        """Notes that the files of a shard are behind the URL: name -> size, and what the server says of the content."""
        replace_file(self._sent(name), json.dumps(files).encode())

    def sent(self, name: str) -> dict[str, list[Any]] | None:
        """What note_sent() kept; None: nothing."""
        known: dict[str, list[Any]] | None = _read_json(self._sent(name)) if self._sent(name).is_file() else None
        return known

    def all_sent(self) -> list[str]:
        """Names of the shards that note_sent() knows."""
        return [path.stem for path in self.folder.glob("*.sent")]

    def forget_sent(self, name: str) -> None:
        """Undoes note_sent(): the shard is sent again, and made again if its files are gone here."""
        self._sent(name).unlink()

    def drop(self, name: str) -> None:
        """Deletes the files of a shard that was sent."""
        for path in self._files(name):
            path.unlink(missing_ok=True)

    def _sent(self, name: str) -> Path:
        return self.folder / f"{name}.sent"

    def _files(self, name: str) -> tuple[Path, Path]:
        tar = self.set_folder / f"{name}.tar"
        return tar, index_path(tar)

    def end(self) -> None:
        """Deletes the journal: the set is complete."""
        shutil.rmtree(self.folder)


def _write_table(path: Path, table: pa.Table) -> None:
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:  # Python's own file, whose errors carry the number of a full disk
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    to_disk(path.parent)


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
