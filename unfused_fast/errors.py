"""The error that is the user's to mend, as opposed to a fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """What came, what was wanted, what to do, in a sentence; the command line prints it without a traceback.

    Ours: one class for the whole project, because what a caller does with it never depends on where it arose.
    """
