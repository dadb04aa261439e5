"""Folders that a command replaces as a whole: only its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from unfused_fast.errors import UserError, cause, few


def replaceable(out: Path, own: Collection[str], what: str, other: str = "another --out") -> Path:
    """The folder that OUT leads to: a link is kept.

    Args:
        own: names in a folder of this kind; while a file is written it ends in .new.
        what: the kind.
        other: what to choose instead.

    Raises:
        UserError: OUT is the working directory, which must not be deleted, or cannot be looked into, or what
            refuse_others refuses of it and of OUT.partial.
    """
    place = out.resolve()
    if place == Path.cwd():
        raise UserError(f"{out}: it is the working directory itself; name a folder in it")
    try:
        for folder in (out, place.with_name(f"{place.name}.partial")):
            refuse_others(folder, own, what, other)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); choose {other}") from error
    return place


def refuse_others(folder: Path, own: Collection[str], what: str, other: str = "another --out") -> None:
    """Raises UserError for a file, and for a folder with names that are not its `own`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: it is a file, but {what} is a directory; choose {other}")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if others := sorted(name for name in names if name.removesuffix(".new") not in own):
        raise UserError(
            f"{folder}: it holds files that do not belong to {what} ({few(others)}); move them away, or choose {other}"
        )
