"""What is written to `--out`, by the ending of its name. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from unfused_fast.errors import UserError

Kind = TypeVar("Kind")


def by_ending(out: Path, kinds: Mapping[str, Kind], folder: str = "") -> Kind:
    """The kind of OUT, by its name's ending, in capitals or not.

    Args:
        kinds: ending, with its dot -> kind; with an empty ending that of a folder.
        folder: what the folder is.

    Raises:
        UserError: another ending.
    """
    ending = out.suffix.lower()
    if ending not in kinds:
        *others, last = filter(None, kinds)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise UserError(
            f"{out}: want a name that ends in {wanted}" + (f", or one without an ending: {folder}" if folder else "")
        )
    return kinds[ending]
