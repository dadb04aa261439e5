"""A file or folder of a tree, with the methods of a Path that adapters use."""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from unfused_fast.shards.sources.places import Location
from unfused_fast.shards.sources.stores import open_place
from unfused_fast.shards.sources.tree import Tree


@dataclass(frozen=True)
class Size:
    """The one field of os.stat_result that adapters use."""

    st_size: int


class Branch:
    """A file or folder of a tree, with the methods of a Path that `places.Folder` lists."""

    __slots__ = ("path", "tree")

    def __init__(self, tree: Tree, path: str = "") -> None:
        """Args: path: below the tree's root, with forward slashes."""
        self.tree, self.path = tree, path

    def __truediv__(self, other: str | os.PathLike[str]) -> Branch:
        path = posixpath.normpath(posixpath.join(self.path, os.fspath(other)))
        return Branch(self.tree, "" if path == "." else path)

    def __str__(self) -> str:
        return posixpath.join(self.tree.name, self.path) if self.path else self.tree.name

    def __repr__(self) -> str:
        return f"Branch({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Branch) and (self.tree, self.path) == (other.tree, other.path)

    def __hash__(self) -> int:
        return hash(self.path)

    def __lt__(self, other: Branch) -> bool:
        return self.path.split("/") < other.path.split("/")

    @property
    def name(self) -> str:
        return PurePosixPath(str(self)).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(str(self)).parts

    @property
    def parent(self) -> Branch:
        return Branch(self.tree, self.path.rpartition("/")[0])

    def as_posix(self) -> str:
        return str(self)

    def relative_to(self, other: Branch) -> PurePosixPath:
        return PurePosixPath(self.path).relative_to(other.path)

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def is_dir(self) -> bool:
        return self.path in self.tree.folders or (self._real is not None and self._real.is_dir())

    def is_file(self) -> bool:
        if self.path in self.tree.hidden:
            return False
        return self.tree.size(self.path) is not None or (self._real is not None and self._real.is_file())

    def iterdir(self) -> Iterator[Branch]:
        names = dict.fromkeys(self.tree.folders.get(self.path, ()))
        if self._real is not None and self._real.is_dir():
            names |= dict.fromkeys(path.name for path in self._real.iterdir())
        elif not names and not self.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(self))
        branches = (self / name for name in sorted(names))
        return (branch for branch in branches if branch.path not in self.tree.hidden)

    def glob(self, pattern: str) -> Iterator[Branch]:
        """As Path.glob, sorted, without `**`."""
        first, _, rest = pattern.partition("/")
        if not any(mark in first for mark in "*?["):
            found = [self / first] if (self / first).exists() else []
        else:
            inside = self.iterdir() if self.is_dir() else iter(())
            found = [branch for branch in inside if fnmatch.fnmatchcase(branch.name, first)]
        for branch in found:
            if not rest:
                yield branch
            elif branch.is_dir():
                yield from branch.glob(rest)

    def stat(self) -> os.stat_result | Size:
        """As Path.stat for what is a file or folder of this machine; else the size alone, 0 for a folder."""
        size = self.tree.size(self.path)
        if size is not None:
            return Size(size)
        if self._real is not None and (self._real.exists() or self.path not in self.tree.folders):
            return self._real.stat()
        if self.path in self.tree.folders:
            return Size(0)
        raise FileNotFoundError(2, "No such file or directory", str(self))

    def open(
        self, mode: str = "r", encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        """Raises OSError, or UnicodeDecodeError when it is read."""
        location = self.tree.location(self.path)
        if isinstance(location, Path):
            return location.open(mode, encoding=encoding, errors=errors, newline=newline)
        data = open_place(location)
        return cast(IO[Any], data if "b" in mode else io.TextIOWrapper(data, encoding, errors, newline))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        with self.open(encoding=encoding or "utf-8", errors=errors) as stream:
            return str(stream.read())

    def location(self) -> Location:
        """Where its bytes are."""
        return self.tree.location(self.path)

    @property
    def _real(self) -> Path | None:
        return None if self.tree.real is None else self.tree.real / self.path
