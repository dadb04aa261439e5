"""Where the bytes of a source file are: a file on this machine, a member of an archive, something behind a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s'\"]*")


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes that are not a file of their own on this machine; small, and the same for every process that opens it."""

    store: str
    """Path on this machine or fsspec URL of the file that holds them."""


Location = Path | Place
Folder = Path
"""What an adapter reads a data set from. Adapters use of it only: `/`, name, stem, suffix, parts, parent, relative_to,
as_posix, exists, is_file, is_dir, iterdir, glob (no `**`), stat().st_size, open, read_text; and layout.walk."""


def is_url(text: str) -> bool:
    """Whether this names something behind an fsspec URL rather than a file on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def shown(text: str) -> str:
    """The text without what may be secret in its URLs: user, password, and everything behind a question mark."""
    return _SECRETS.sub("", text)
