"""What a hostile file is: its name, how it is made, what must become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKED = "packed"
EITHER = "either"
"""Packed or rejected, as the decoder's version likes it; `Case.why` says what the versions may disagree about."""
UNLISTED = "unlisted"
"""No file: neither in the set nor in rejected.csv."""
REJECTED = ""
"""Rejected for any reason."""


@dataclass(frozen=True)
class Case:
    """One file below the corpus folder."""

    name: str
    build: Callable[[Path], None]
    expected: str
    """`PACKED`, `EITHER`, `UNLISTED`, or words of the reason in rejected.csv."""
    why: str = ""


def holding(data: bytes) -> Callable[[Path], None]:
    """Builder of a file of these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def build_all(cases: list[Case], folder: Path) -> None:
    """Makes every case below `folder`, in order."""
    for case in cases:
        path = folder / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        case.build(path)
