"""What people read: sentences and progress bars on standard error, tables. Imports nothing heavy, such as torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `1,200 epochs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Sentences(Console):
    """A console that prints a message once per process, however many steps repeat it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.said = set[Hashable]()

    def once(self, sentence: str, about: Hashable = None, style: str | None = None) -> None:
        """Prints the sentence, unless it or another about the same thing was printed before."""
        about = sentence if about is None else about
        if about not in self.said and not self.quiet:
            self.said.add(about)
            self.print(sentence, style=style)


console = Sentences(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def shows_bars() -> bool:
    """Whether bars are drawn: on a terminal, and in a notebook with ipywidgets, by which rich draws them there."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def progress_bar() -> Progress:
    """A bar with a free `note` field, where bars are drawn; nothing elsewhere."""
    counts = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
    columns = TextColumn("{task.description}"), BarColumn(), *counts
    return Progress(*columns, console=console, transient=True, disable=not shows_bars())


def terminal_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal: the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 1 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
