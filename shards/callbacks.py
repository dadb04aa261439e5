"""Progress callbacks and their no-op defaults."""

from __future__ import annotations

from collections.abc import Callable

OnMessage = Callable[[str], None]
"""Called with a message for the user."""
OnProgress = Callable[[int, int, int], None]
"""Called with steps done, steps in all, and how many files were rejected or found damaged."""


def no_message(text: str) -> None:
    """Drops the message."""


def no_progress(done: int, total: int, noted: int) -> None:
    """Shows nothing."""
