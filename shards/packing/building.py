"""OUT.partial: where a set is made, and how it replaces OUT atomically; journal.py says what is in there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.filesize import decimal

from unfused_fast.errors import Interrupted, UserError, cause
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.sets.table import MANIFEST, PART

if TYPE_CHECKING:
    from unfused_fast.shards.packing.upload import RemoteSet

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]

BUSY = "another process is packing to it; wait for it, or choose another OUT"
_FULL = "free some space and run the same command again, or pack to another disk"
_FORBIDDEN = "make it writable and run the same command again, or choose another OUT"
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
        Interrupted: by Ctrl-C, once the set was begun.
    """
    shown = str(out) if remote is None else remote.shown
    real, partial, replaced = Path(os.path.realpath(out)), beside(out, "partial"), beside(out, "replaced")
    if remote is None and Path.cwd().is_relative_to(real):
        raise UserError(f"{shown}: it is the working directory, or holds it; name a folder in it, or work elsewhere")
    journal = Journal(partial)
    if remote is not None:  # it is there, and complete, when a run was killed at its very end
        shutil.rmtree(out, ignore_errors=True)
    try:
        if not real.exists() and is_complete(replaced):  # killed between the two renames
            replaced.rename(real)
        replace = overwrite or (resume and journal.begun.get("replaces") is True)
        _check_replaceable(out, replace)
        for folder in (partial, replaced):
            if not _is_ours(folder):
                raise UserError(
                    f"{folder}: packing needs this folder, but it holds something else; move that away, or choose "
                    "another OUT"
                )
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
            except BaseException as error:
                if not begun:
                    discard(partial)
                shutil.rmtree(journal.making, ignore_errors=True)
                if not any(partial.iterdir()):
                    partial.rmdir()
                if begun and isinstance(error, KeyboardInterrupt):
                    again = " with --resume" if overwrite and not resume else ""
                    raise Interrupted(f"{shown}: stopped; run the same command again{again} to continue") from error
                raise
            if real.exists() and any(real.iterdir()):
                tidy(out)
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
    """The sibling folder OUT.ending, of the folder that `out` leads to. Raises UserError: the root directory."""
    real = Path(os.path.realpath(out))
    if not real.name:
        raise UserError(f"{out}: the root directory; name a folder in it")
    return real.with_name(f"{real.name}.{ending}")


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a finished set, or a finished part of one."""
    return (folder / MANIFEST).is_file() or (folder / PART).is_file()


def tidy(out: Path) -> None:
    """Deletes what a finished set does not need: its journal, and the set that it replaced."""
    if (out / MANIFEST).is_file():
        shutil.rmtree(out / "journal", ignore_errors=True)
    if (replaced := beside(out, "replaced")).is_dir() and _is_ours(replaced):
        with suppress(OSError):
            discard(replaced)
            replaced.rmdir()


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a set, a part of one, an unfinished one or nothing; so does one that is not there."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return is_complete(folder) or (folder / "journal").is_dir() or not any(folder.iterdir())


def complete(folder: Path, name: str, text: str) -> None:
    """Flushes every file to the disk, then writes the file that marks the others as complete."""
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    (folder / name).write_text(text, encoding="utf-8", newline="\n")
    to_disk(folder / name)
    to_disk(folder)


def discard(folder: Path) -> None:
    """Deletes all that is in a folder; last, by which a later run knows that it is ours."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name in (MANIFEST, PART, "journal")):
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
            "disk, or halve the set with --codec flac --overwrite"
        )


def _check_replaceable(out: Path, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file, but a shard set is a folder; choose another OUT")
    if not is_complete(out):
        raise UserError(f"{out}: is not empty and is not a shard set, so it is not overwritten; choose a new OUT")
    if not replace:
        raise UserError(f"{out}: a shard set is already there; choose another OUT, or replace it with --overwrite")


@contextmanager
def _lock(partial: Path, shown: str) -> Iterator[None]:
    """Locks out other processes while the block runs. Raises UserError: one is packing there, or has just finished.

    Ours: the lock is on the open folder, so it ends with the process however that ends, and leaves no file. Windows
    does not open folders; there it is on a file beside it.
    """
    if fcntl is None:
        try:
            with FileLock(partial.with_name(f"{partial.name}.lock"), blocking=False):
                yield
        except Timeout:
            raise UserError(f"{shown}: {BUSY}") from None
        return
    folder = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{shown}: {BUSY}") from None
        except OSError:  # a file system without locks
            pass
        if not partial.exists() or partial.stat().st_ino != os.fstat(folder).st_ino:
            raise UserError(f"{shown}: another process has just finished packing to it; check its result")
        yield
    finally:
        os.close(folder)


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk; Windows, which does not open folders, waits for
    neither.
    """
    if fcntl is None:
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(PermissionError):
            os.fsync(opened)
    finally:
        os.close(opened)
