"""Where the bytes of a source file are: a file on this machine, a member of an archive, something behind a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGEST_DEFLATED_GB = 4.0
"""Largest deflated member of a zip, in GB (1e9 bytes) of what it inflates to: it is inflated in memory. Members that
are stored in a zip or a tar, and those of a tar.gz, are read in parts. Ours: six hours of CD audio."""

_SECRETS = re.compile(r"(?<=://)[^/?#\s]*@|\?[^\s'\"]*")


class Kind(IntEnum):
    """How the bytes of a place lie in its store; a number, so that a listing of many members stays small."""

    WHOLE = 0
    """The store is the file."""
    STORED = 1
    """As they are, from `start` on."""
    ZIP_STORED = 2
    """As they are, behind the local header of a zip at `start`."""
    ZIP_DEFLATED = 3
    """Deflated, behind the local header of a zip at `start`."""
    GZIP = 4
    """From `start` on in what the store, a gzip file, inflates to."""
    REFUSED = 5
    """They are not read; `why` says the reason."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes that are not a file of their own on this machine; small, and the same for every process that opens it."""

    store: tuple[str, ...]
    """Paths on this machine or fsspec URLs of the files that, one behind the other, hold them."""
    kind: Kind = Kind.WHOLE
    start: int = 0
    size: int = 0
    """Bytes of the member; unknown, and 0, where the store is the file."""
    packed: int = 0
    """Bytes that a deflated member takes."""
    crc: int = 0
    """Of a deflated member."""
    index: str = ""
    """File with the seek points of a gzip store; empty where the store is so small that it needs none."""
    why: str = ""
    """Why it is not read, in the user's words."""


Location = Path | Place
Folder = Path
"""What an adapter reads a data set from: a `Path`, or a `trees.Branch`, which shows archives as if they had been
unpacked. Adapters use of it only: `/`, name, stem, suffix, parts, parent, relative_to, as_posix, exists, is_file,
is_dir, iterdir, glob (no `**`), stat().st_size, open, read_text; and layout.walk."""


def refused(why: str) -> Place:
    """The place of a file that is named in rejected.csv and not read."""
    return Place((), Kind.REFUSED, why=why)


def is_url(text: str) -> bool:
    """Whether this names something behind an fsspec URL rather than a file on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def local_path(place: Path | str) -> Path | str:
    """A Path unless this is a URL of another machine."""
    if isinstance(place, str) and place.startswith("file://"):
        return Path(unquote(urlsplit(place).path))
    return place if isinstance(place, str) and is_url(place) else Path(place)


def place_title(place: Path | str) -> str:
    """Display name of a location: a path as it is, a URL without its secrets."""
    return shown(place) if isinstance(place, str) and is_url(place) else str(place)


def shown(text: str) -> str:
    """The text without what may be secret in its URLs: user, password, and everything behind a question mark."""
    return _SECRETS.sub("", text)
