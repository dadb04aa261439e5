"""A file or folder of a listing, with the methods of a Path that adapters of data sets use."""

from __future__ import annotations

import fnmatch
import io
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from unfused_fast.shards.callbacks import OnMessage, no_message
from unfused_fast.shards.sources.archives import LARGEST_INFLATED
from unfused_fast.shards.sources.listing import Listing, list_source
from unfused_fast.shards.sources.location import Folder, Location, local_path, refused
from unfused_fast.shards.sources.reader import open_location


class ListedPath:
    """A file or folder of a listing, with the methods of a Path that adapters of data sets use."""

    __slots__ = ("listing", "path")

    def __init__(self, listing: Listing, path: str = "") -> None:
        """Args: path: below the source, with forward slashes."""
        self.listing, self.path = listing, path

    def __truediv__(self, other: str | os.PathLike[str]) -> ListedPath:
        path = posixpath.normpath(posixpath.join(self.path, os.fspath(other)))
        return ListedPath(self.listing, "" if path == "." else path)

    def __str__(self) -> str:
        return posixpath.join(self.listing.title, self.path) if self.path else self.listing.title

    @property
    def parts(self) -> tuple[str, ...]:
        """As Path.parts, of the title and the path."""
        return PurePosixPath(str(self)).parts

    @property
    def name(self) -> str:
        """As Path.name."""
        return PurePosixPath(str(self)).name

    @property
    def stem(self) -> str:
        """As Path.stem."""
        return PurePosixPath(str(self)).stem

    @property
    def parent(self) -> ListedPath:
        """The folder that it is in; of the source itself the source."""
        return ListedPath(self.listing, self.path.rpartition("/")[0])

    def relative_to(self, other: ListedPath) -> PurePosixPath:
        """As Path.relative_to, of two of one listing."""
        return PurePosixPath(self.path).relative_to(other.path)

    def exists(self) -> bool:
        """Whether the listing has it."""
        return self.is_file() or self.is_dir()

    def is_dir(self) -> bool:
        """Whether the listing has it as a folder."""
        return self.path in self.listing.folders

    def is_file(self) -> bool:
        """Whether the listing has it as a file."""
        return self.path in self.listing.files

    def iterdir(self) -> Iterator[ListedPath]:
        """What is in this folder, sorted. Raises FileNotFoundError: it is none."""
        if not self.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return (self / name for name in sorted(self.listing.folders[self.path]))

    def glob(self, pattern: str) -> Iterator[ListedPath]:
        """As Path.glob, sorted, without `**`."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir() if self.is_dir() else ():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def resolve(self) -> ListedPath:
        """Itself: archives hold no links that are followed."""
        return self

    def open(
        self, mode: str = "r", encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        """Raises OSError, or UnicodeDecodeError when it is read."""
        location = self.location()
        if isinstance(location, Path):
            return location.open(mode, encoding=encoding, errors=errors, newline=newline)
        data = open_location(location)
        return cast(IO[Any], data if "b" in mode else io.TextIOWrapper(data, encoding, errors, newline))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """As Path.read_text, in UTF-8 unless `encoding` is given."""
        with self.open(encoding=encoding or "utf-8", errors=errors) as stream:
            return str(stream.read())

    def location(self) -> Location:
        """Where its bytes are."""
        return self.listing.files.get(self.path) or refused("no such file")


def folder_of(
    source: Path | str, *, work: Path | None = None, largest: int = LARGEST_INFLATED, note: OnMessage = no_message
) -> Folder:
    """A folder, an archive, or a URL of one -> what adapters read; a folder without archives is its plain Path.

    For the arguments and errors see list_source().
    """
    listing = list_source(source, work=work, largest=largest, note=note)
    return Path(local_path(source)) if listing.is_plain else cast(Folder, ListedPath(listing))
