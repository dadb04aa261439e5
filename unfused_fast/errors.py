"""An error that the user can fix, as opposed to a bug; and an interruption."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """One sentence: what came, what was expected, what to do. The command line prints it without a traceback.

    Ours: one class for the whole project, because what a caller does with it never depends on where it arose.
    """


class Interrupted(Exception):
    """Ctrl-C or another signal of launch.STOPPING came; finished work is saved. One sentence: how to continue."""


def cause(error: BaseException) -> str:
    """Why something failed: the operating system's message (Permission denied), or else the error's own."""
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


def unreadable(path: Path, error: Exception, advice: str) -> UserError:
    """The error for a file or folder that cannot be read. `advice` is for one that is damaged or gone: where only the
    permission to read it is missing, nothing has to be made again.
    """
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        advice = "its owner can give you permission to read it, with chmod"
    return UserError(f"{path}: cannot be read ({cause(error)}); {advice}")


def escaped(text: str) -> str:
    """The text as one plain line: names of files may hold what commands a terminal, or bytes that are no UTF-8."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in in_unicode(text))


def few(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(map(escaped, names[:3])) + (", ..." if len(names) > 3 else "")


def in_unicode(name: str) -> str:
    """The name of a file as text that every file format takes: bytes that are no UTF-8 are written as \\xNN."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
