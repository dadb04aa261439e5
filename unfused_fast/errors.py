"""The error that is the user's to mend, as opposed to a fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """What came, what was wanted, what to do, in a sentence; the command line prints it without a traceback.

    Ours: one class for the whole project, because what a caller does with it never depends on where it arose.
    """


def escaped(text: str) -> str:
    """The text as one plain line: names of files may hold what commands a terminal, or bytes that are no UTF-8."""
    known = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in known)
