"""OUT.partial: where a set is made, and how it takes OUT's place all at once or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import MANIFEST, PART

PARTIAL, REPLACED = ".partial", ".replaced"
"""Endings of OUT's siblings: the set being made; the set that was there, between two renames."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass
class Building:
    """A set being made."""

    out: Path
    folder: Path
    """OUT.partial."""
    needed_bytes: int = 0
    """What is still to be written, at most; 0 while that is not known."""

    def check_space(self) -> None:
        """Raises UserError when the disk has less room than the set needs."""
        free = shutil.disk_usage(self.folder).free
        if self.needed_bytes > free:
            raise UserError(
                f"{self.folder.parent}: the set needs up to {_gigabytes(self.needed_bytes)} more, but the disk has "
                f"{_gigabytes(free)} free; nothing at {self.out} was touched: make room and give the same command "
                "again, pack to another disk, or halve the set with --codec flac"
            )

    def finish(self, name: str, text: str) -> None:
        """Brings every file to the disk, then the one whose presence says that the others are complete."""
        for path in sorted(self.folder.iterdir()):
            to_disk(path)
        (self.folder / name).write_text(text, encoding="utf-8", newline="\n")
        to_disk(self.folder / name)
        to_disk(self.folder)

    def discard(self) -> None:
        """Deletes everything made so far."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def building(out: Path, replace: bool, fresh: bool, shown: str | None = None) -> Iterator[Building]:
    """OUT.partial, which becomes OUT when the block ends, and stays to be gone on with when it raises; OUT is always
    whole.

    Args:
        replace: a finished set at `out` may be replaced.
        fresh: what an unfinished run left is deleted first.
        shown: what `out` is called in errors.

    Raises:
        UserError: `out` is a file, a set without `replace`, or a folder with other things in it; another process packs
            to it; or the disk refuses to be written.
    """
    given, out = out, Path(os.path.realpath(out))
    partial, replaced = partial_of(out), out.with_name(out.name + REPLACED)
    build = Building(out, partial)
    try:
        if not out.exists() and is_complete(replaced):  # killed between the two renames
            replaced.rename(out)
        _check_replaceable(given, replace)
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            _lock(lock, partial, shown or str(given))
            if fresh:
                build.discard()
            try:
                yield build
            except BaseException:
                if not any(partial.iterdir()):
                    partial.rmdir()
                raise
            if out.exists() and any(out.iterdir()):
                shutil.rmtree(replaced, ignore_errors=True)
                out.rename(replaced)
            partial.replace(out)
        finally:
            os.close(lock)
        to_disk(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        needed = f" up to {_gigabytes(build.needed_bytes)} are still needed;" if build.needed_bytes else ""
        raise UserError(
            f"{partial.parent}: cannot be written, {error.strerror or os.strerror(error.errno)};{needed} what is "
            f"packed so far is in {partial.name}: make room and give the same command again, or pack to another disk"
        ) from error


def partial_of(out: Path) -> Path:
    """Where the set `out` is made."""
    real = Path(os.path.realpath(out))
    return real.with_name(real.name + PARTIAL)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a finished set, or a finished part of one."""
    return (folder / MANIFEST).is_file() or (folder / PART).is_file()


def _check_replaceable(out: Path, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file, but a shard set is a folder; name another place")
    if not is_complete(out):
        raise UserError(
            f"{out}: a folder with other things in it, not a shard set, so it is not overwritten; "
            "name another place or empty it"
        )
    if not replace:
        raise UserError(f"{out}: a shard set is already there; name another place, or replace it with --overwrite")


def _lock(folder: int, partial: Path, out: str) -> None:
    """Ours: the lock is on the open folder, so it ends with the process however that ends, and leaves no file."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: another process is packing to it; wait for it, or name another place") from None
    except OSError:  # a file system without locks
        return
    if not partial.exists() or partial.stat().st_ino != os.fstat(folder).st_ino:
        raise UserError(f"{out}: another process has just finished packing to it; look at what it made")


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):
            os.fsync(opened)
    finally:
        os.close(opened)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
