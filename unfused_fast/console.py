"""Standard error for people: sentences and progress bars. Imports neither torch nor anything else that is heavy."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def progress_bar() -> Progress:
    """A bar with a free `note` field, on a terminal; nothing elsewhere."""
    counts = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
    columns = TextColumn("{task.description}"), BarColumn(), *counts
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
