"""The location of the bytes of a recording: a file of this machine, a member of an archive, something behind a URL."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGEST_DEFLATED_GB = 4.0
"""Largest deflated member of a zip, in GB (1e9 bytes) of what it inflates to. Ours: six hours of CD audio."""

_SECRETS = re.compile(r"(?<=://)[^/?#\s]*@|\?[^\s'\"]*")


class Kind(IntEnum):
    """How the bytes are stored: the whole file; part of it, from `start` on; after the local header of a zip at
    `start`, as they are or deflated; from `start` on in what a gzip file inflates to; not read, for the reason `why`.
    """

    WHOLE, STORED, ZIP_STORED, ZIP_DEFLATED, GZIP, REFUSED = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class ByteLocation:
    """Bytes that are not a separate file on this machine. Small, picklable, and valid in every process."""

    files: tuple[str, ...]
    """Paths on this machine or fsspec URLs of the files that, joined, hold the bytes."""
    kind: Kind = Kind.WHOLE
    start: int = 0
    size: int = 0
    """Bytes of the member; 0 for Kind.WHOLE."""
    packed: int = 0
    """Bytes that a deflated member takes."""
    crc: int = 0
    """CRC-32 of a member of a zip."""
    index: str = ""
    """File for the seek points of a gzip file or a deflated member; empty for one so small that it needs none."""
    why: str = ""


Location = Path | ByteLocation
Folder = Path
"""What an adapter reads a data set from: a `Path`, or a `ListedPath`, which shows archives as if they had been
unpacked and has those methods of a Path that adapters use."""


def refused(why: str) -> ByteLocation:
    """The location of a file that is not read, and listed in rejected.csv with this reason."""
    return ByteLocation((), Kind.REFUSED, why=why)


def state_of(location: Location) -> list[int]:
    """Size and time of change (ns) of each file of this machine that holds the bytes; of one that is gone, nothing."""
    state = list[int]()
    for name in location.files if isinstance(location, ByteLocation) else (str(location),):
        if not is_url(name):
            with suppress(OSError, ValueError):
                status = Path(name).stat()
                state += status.st_size, status.st_mtime_ns
    return state


def is_url(text: str) -> bool:
    """Whether this is an fsspec URL rather than a path on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def local_path(given: Path | str) -> Path | str:
    """A Path, unless this is a URL of another machine."""
    if isinstance(given, str) and given.startswith("file://"):
        return Path(unquote(urlsplit(given).path))
    return given if isinstance(given, str) and is_url(given) else Path(given)


def display_name(given: Path | str) -> str:
    """How messages name a path or URL: a path unchanged, a URL without its secrets."""
    return without_secrets(given) if isinstance(given, str) and is_url(given) else str(given)


def without_secrets(text: str) -> str:
    """The text without what may be secret in its URLs: user, password, and everything after a question mark."""
    return _SECRETS.sub("", text)
