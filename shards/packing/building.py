"""OUT.partial: where a set is made, from which it resumes after any interruption, and how it replaces OUT atomically.

OUT.partial/journal/request.json   the request; a different request does not resume this set
OUT.partial/journal/headers.jsonl  headers of the files, a block a line
OUT.partial/journal/NAME.parquet   written when NAME.tar and NAME.idx have their names: their clips and rejections
OUT.partial/journal/sent.jsonl     of a set behind a URL: the shards that are there, one a line; they may be gone here
OUT.partial/journal/making/        shards being written

A finished part of a set keeps its journal, from which it is merged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.filesize import decimal

from unfused_fast.errors import UserError, cause
from unfused_fast.json_files import is_count, read_json
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.packing.pack_shard import DoneShard
from unfused_fast.shards.sets.shard_files import check_index, index_path, replace_file
from unfused_fast.shards.sets.table import DONE_SCHEMA, MANIFEST, PART
from unfused_fast.shards.sources.reasons import Reason, Rejected

if TYPE_CHECKING:
    from unfused_fast.shards.packing.upload import RemoteSet

_FULL = "free some space and run the same command again, or pack to another disk"
_FORBIDDEN = "get the right to write there and run the same command again, or choose another OUT"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again, or pack to another disk",
    errno.EROFS: "choose an OUT on a disk that can be written",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EIO: "look for the cause in the system log, or pack to another disk",
}
"""What to do about an error of the disk."""
_ABOUT = b"unfused"


class Journal:
    """What is known of a set that is unfinished, or of a finished part of one."""

    def __init__(self, set_folder: Path) -> None:
        """Of the set in `set_folder`; nothing is read or written yet."""
        self.set_folder, self.folder = set_folder, set_folder / "journal"
        self.making = self.folder / "making"
        self.request: Mapping[str, Any] = {}
        self.owner = ""
        """A name that no other journal has."""
        self.sent: dict[str, dict[str, Sequence[Any]]] = {}
        """Of the shards behind the URL: name -> file -> size, and the server's digest of the content."""

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

    def headers(self, sizes: Mapping[int, int]) -> dict[int, list[Probe | Rejected]]:
        """The blocks of headers that were read: number of the first file -> what was found.

        Args:
            sizes: of all blocks: number of the first file -> files; what does not fit is read again.
        """
        found: dict[int, list[Probe | Rejected]] = {}
        for line in self._lines("headers.jsonl"):
            with suppress(ValueError, TypeError):
                first, values = line
                if len(values) == sizes.get(first):
                    found[first] = [_header(*value) for value in values]
        return found

    def add_headers(self, first: int, probes: Sequence[Probe | Rejected]) -> None:
        """Keeps a block of headers."""
        values = [
            (probe.reason, probe.detail) if isinstance(probe, Rejected) else (probe.frames, probe.rate_hz)
            for probe in probes
        ]
        self._add_line("headers.jsonl", (first, values))

    def add_sent(self, name: str, files: dict[str, Sequence[Any]]) -> None:
        """Keeps that the files of a shard are behind the URL, see `sent`."""
        self.sent[name] = files
        self._add_line("sent.jsonl", (name, files))

    def forget_sent(self, name: str) -> None:
        """Keeps that a shard has to be sent, although it may have been."""
        if self.sent.pop(name, None) is not None:
            self._add_line("sent.jsonl", (name, {}))

    def _sent(self) -> dict[str, dict[str, Sequence[Any]]]:
        sent: dict[str, dict[str, Sequence[Any]]] = {}
        for line in self._lines("sent.jsonl"):
            with suppress(ValueError, TypeError, AttributeError):
                name, files = line
                sent.pop(name, None)
                if {path.name for path in self.files(name)} == files.keys():
                    sent[name] = {file: tuple(facts) for file, facts in files.items()}
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
        """Gives a shard whose tar is at `tar` its name, and notes that it is there."""
        for new, path in zip((tar, index_path(tar)), self.files(done.name), strict=True):
            new.replace(path) if done.bytes else new.unlink(missing_ok=True)
        about = json.dumps({"rejected": done.rejected, "bytes": done.bytes, "origin": done.origin}).encode()
        note = self.making / f"{done.name}.parquet"
        with note.open("wb") as file:  # Python's own file, whose errors have the error number of a full disk
            pq.write_table(done.clips.replace_schema_metadata({_ABOUT: about}), file, compression="zstd")
        note.replace(self.folder / note.name)

    def done(self, name: str) -> DoneShard | None:
        """A finished shard; None: it is missing, incomplete or damaged, for example after a power cut."""
        try:
            with pq.ParquetFile(self.folder / f"{name}.parquet") as file:
                table = file.read()
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


def _header(first: Any, second: Any) -> Probe | Rejected:
    """What add_headers() kept of a file. Raises ValueError: it is something else."""
    if isinstance(first, str) and isinstance(second, str):
        return Rejected(Reason(first), second)
    if not (is_count(first) and is_count(second) and second):
        raise ValueError("no header")
    return Probe(first, second)


@contextmanager
def building(
    out: Path, request: Mapping[str, Any], overwrite: bool, resume: bool, remote: RemoteSet | None = None
) -> Iterator[Journal]:
    """The journal of the set made in OUT.partial, which becomes OUT when the block ends, and is kept for a resume
    when the block raises; OUT is always whole.

    Args:
        overwrite: a finished set at `out` may be replaced, and what an unfinished run left is deleted.
        resume: nothing is deleted, and `out` may be replaced if the unfinished run might have replaced it.
        remote: the set is made there; `out` is the folder on this machine, which is deleted in the end.

    Raises:
        UserError: `out` is a file, a set that may not be replaced, or a folder that is neither empty nor a set; another
            process packs to it; the unfinished set was started with different options; or the disk cannot be written.
    """
    shown = str(out) if remote is None else remote.shown
    real, partial, replaced = Path(os.path.realpath(out)), beside(out, "partial"), beside(out, "replaced")
    journal = Journal(partial)
    if remote is not None:  # it is there, and complete, when a run was killed at its very end
        shutil.rmtree(out, ignore_errors=True)
    try:
        if not real.exists() and is_complete(replaced):  # killed between the two renames
            replaced.rename(real)
        replace = overwrite or (resume and journal.begun.get("replaces") is True)
        _check_replaceable(out, replace)
        partial.mkdir(parents=True, exist_ok=True)
        with _lock(partial, shown):
            if overwrite and not resume:
                discard(partial)
            begun = bool(journal.begun)
            if not begun and not journal.stopped_at_once:
                raise UserError(
                    f"{partial}: not an unfinished set that this version can resume; delete it, or start again with "
                    "--overwrite"
                )
            try:
                journal.begin(request, replace, shown)
                if remote is not None:
                    remote.begin(journal, overwrite)
                begun = True
                yield journal
            except BaseException:
                if not begun:
                    discard(partial)
                shutil.rmtree(journal.making, ignore_errors=True)
                if not any(partial.iterdir()):
                    partial.rmdir()
                raise
            if real.exists() and any(real.iterdir()):
                shutil.rmtree(replaced, ignore_errors=True)
                real.rename(replaced)
            partial.replace(real)
        to_disk(real.parent)
        tidy(out)
        if remote is not None:
            shutil.rmtree(real, ignore_errors=True)
    except OSError as error:
        if (advice := _ADVICE.get(error.errno or 0)) is None:
            raise
        packed = f"what is packed so far is in {partial.name}: " if os.access(partial, os.F_OK) else ""
        raise UserError(f"{partial.parent}: cannot be written, {cause(error)}; {packed}{advice}") from error


def beside(out: Path, ending: str) -> Path:
    """The sibling folder OUT.ending, of the folder that `out` leads to."""
    real = Path(os.path.realpath(out))
    return real.with_name(f"{real.name}.{ending}")


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a finished set, or a finished part of one."""
    return (folder / MANIFEST).is_file() or (folder / PART).is_file()


def tidy(out: Path) -> None:
    """Deletes what a finished set does not need: its journal, and the set that it replaced."""
    if (out / MANIFEST).is_file():
        shutil.rmtree(out / "journal", ignore_errors=True)
    shutil.rmtree(beside(out, "replaced"), ignore_errors=True)


def complete(folder: Path, name: str, text: str) -> None:
    """Flushes every file to the disk, then writes the file that marks the others as complete."""
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    (folder / name).write_text(text, encoding="utf-8", newline="\n")
    to_disk(folder / name)
    to_disk(folder)


def discard(folder: Path) -> None:
    """Deletes all that is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Raises UserError when the disk has less room than the set made in `folder` needs, in bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: the set needs up to {decimal(needed, precision=2)} more, but the disk has "
            f"{decimal(free, precision=2)} free; free some space and run the same command again, pack to another "
            "disk, or halve the set with --codec flac"
        )


def _check_replaceable(out: Path, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file, but a shard set is a folder; choose another OUT")
    if not is_complete(out):
        raise UserError(
            f"{out}: is not empty and is not a shard set, so it is not overwritten; "
            "choose another OUT or empty the folder"
        )
    if not replace:
        raise UserError(f"{out}: a shard set is already there; choose another OUT, or replace it with --overwrite")


@contextmanager
def _lock(partial: Path, shown: str) -> Iterator[None]:
    """Locks out other processes while the block runs. Raises UserError: one is packing there, or has just finished.

    Ours: the lock is on the open folder, so it ends with the process however that ends, and leaves no file.
    """
    folder = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{shown}: another process is packing to it; wait for it, or choose another OUT") from None
        except OSError:  # a file system without locks
            pass
        if not partial.exists() or partial.stat().st_ino != os.fstat(folder).st_ino:
            raise UserError(f"{shown}: another process has just finished packing to it; check its result")
        yield
    finally:
        os.close(folder)


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(PermissionError):
            os.fsync(opened)
    finally:
        os.close(opened)
