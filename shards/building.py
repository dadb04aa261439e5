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
from unfused_fast.shards.table import MANIFEST

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
    """What it will take up at most; 0 while that is not known."""

    def check_space(self) -> None:
        """Raises UserError when the disk has less room than the set needs."""
        free = shutil.disk_usage(self.folder).free
        if self.needed_bytes > free:
            raise UserError(
                f"{self.folder.parent}: the set needs up to {_gigabytes(self.needed_bytes)}, but the disk has "
                f"{_gigabytes(free)} free; nothing at {self.out} was touched: make room, pack to another disk, "
                "or halve the set with --codec flac"
            )

    def finish(self, manifest: str) -> None:
        """Brings every file to the disk, then the manifest, whose presence says that the others are complete."""
        for path in sorted(self.folder.iterdir()):
            _to_disk(path)
        (self.folder / MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")
        _to_disk(self.folder / MANIFEST)
        _to_disk(self.folder)


@contextmanager
def building(out: Path, overwrite: bool) -> Iterator[Building]:
    """A fresh OUT.partial that becomes OUT when the block ends, and is deleted when it raises; OUT is always whole.

    An OUT.partial of a run that was killed is deleted first.

    Raises:
        UserError: `out` is a file, a set without `overwrite`, or a folder with other things in it; another process
            packs to it; or the disk refuses to be written.
    """
    given, out = out, Path(os.path.realpath(out))
    partial, replaced = (out.with_name(out.name + ending) for ending in (PARTIAL, REPLACED))
    build = Building(out, partial)
    try:
        if not out.exists() and (replaced / MANIFEST).is_file():  # killed between the two renames
            replaced.rename(out)
        _check_replaceable(given, overwrite)
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            _lock(lock, given)
            try:
                _empty(partial)
                yield build
                if out.exists() and any(out.iterdir()):
                    shutil.rmtree(replaced, ignore_errors=True)
                    out.rename(replaced)
                partial.replace(out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                if not out.exists() and replaced.exists():
                    replaced.rename(out)
                raise
        finally:
            os.close(lock)
        _to_disk(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        needed = f" the set needs up to {_gigabytes(build.needed_bytes)};" if build.needed_bytes else ""
        raise UserError(
            f"{partial.parent}: cannot be written, {error.strerror or os.strerror(error.errno)};{needed} "
            f"nothing at {given} was touched: make room or pack to another disk"
        ) from error


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file, but a shard set is a folder; name another place")
    if not (out / MANIFEST).is_file():
        raise UserError(
            f"{out}: a folder with other things in it, not a shard set, so it is not overwritten; "
            "name another place or empty it"
        )
    if not overwrite:
        raise UserError(f"{out}: a shard set is already there; name another place, or replace it with --overwrite")


def _lock(folder: int, out: Path) -> None:
    """Ours: the lock is on the open folder, so it ends with the process however that ends, and leaves no file."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: another process is packing to it; wait for it, or name another place") from None
    except OSError:  # a file system without locks
        return


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):
            os.fsync(opened)
    finally:
        os.close(opened)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
