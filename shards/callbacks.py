"""Callbacks of long work, and the defaults that do nothing."""

from __future__ import annotations

from collections.abc import Callable

OnMessage = Callable[[str], None]
"""Called with a sentence."""
OnProgress = Callable[[int, int, int], None]
"""Called with steps done, steps in all, and how many files were rejected or found damaged."""


def no_message(text: str) -> None:
    """Drops the sentence."""


def no_progress(done: int, total: int, noted: int) -> None:
    """Shows nothing."""
