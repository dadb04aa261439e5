"""What a hostile file is: its name, its contents, what must become of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PACKED = "packed"
UNLISTED = "unlisted"
"""No file: neither in the set nor in rejected.csv."""
REJECTED = ""
"""Rejected for any reason."""


class Case(NamedTuple):
    """One file below the corpus folder."""

    name: str
    build: bytes | Callable[[Path], None]
    """Its contents, or what makes it."""
    expected: str
    """`PACKED`, `UNLISTED`, or words of the reason in rejected.csv."""


def cases_in(form: str, kinds: list[tuple[str, bytes, str]]) -> list[Case]:
    """Cases whose names are `form`, such as "flac/{}.flac", with theirs in it."""
    return [Case(form.format(name), data, what) for name, data, what in kinds]


def build_all(cases: list[Case], folder: Path) -> None:
    """Makes every case below `folder`, in order."""
    for case in cases:
        path = folder / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(case.build, bytes):
            path.write_bytes(case.build)
        else:
            case.build(path)
