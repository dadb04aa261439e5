"""What long work tells its caller, and what is called where nobody listens."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Told a sentence."""
Progress = Callable[[int, int, int], None]
"""Told steps done, steps in all, and how many files were rejected or found damaged."""


def unheard(text: str) -> None:
    """Nobody listens."""


def unseen(done: int, total: int, noted: int) -> None:
    """Nobody watches."""
