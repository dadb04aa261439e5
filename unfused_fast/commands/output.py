"""What the commands of the command line print. Imports nothing heavy."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfused_fast.errors import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from unfused_fast.evaluation import TextTable
    from unfused_fast.shards.sets.table import ShardSet


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    in_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not in_unicode))


def stdout_console() -> Console:
    """For tables: as wide as the terminal, or 160 columns where there is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_result(result: dict[str, Any], as_json: bool, closing: str) -> None:
    """A stage's result: JSON, or its main numbers and what comes next."""
    shown = ("valid", "test", "loss", "k", "clips_per_second", "seconds", "run")
    numbers = (
        f"{name} {result[name]:g}" if isinstance(result[name], float) else f"{name} {result[name]}"
        for name in shown
        if result.get(name) is not None
    )
    show(result, as_json, [], filter(None, ("  ".join(numbers), closing)))


def next_command(*arguments: object) -> str:
    """The command to run next, quoted for a shell; secrets are removed from URLs."""
    from unfused_fast.shards.sources.location import display_name

    return f"next: unfused-fast {shlex.join(display_name(str(argument)) for argument in arguments)}"


def show(result: Any, as_json: bool, tables: Iterable[TextTable], sentences: Iterable[str] = ()) -> None:
    """The result as JSON, or its tables and sentences."""
    if as_json:
        print_json(result)
        return
    from unfused_fast.console import terminal_table

    for table in tables:
        stdout_console().print(terminal_table(*table))
    for sentence in sentences:
        print(escaped(sentence))


@contextmanager
def bar(title: str, noted: str = "rejected") -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar on standard error that takes (done, total, how many are `noted`)."""
    from unfused_fast.console import progress_bar

    with progress_bar() as progress:
        task = progress.add_task(title, note="")

        def advance(done: int, total: int, count: int) -> None:
            progress.update(task, completed=done, total=total, note=f"{count} {noted}" if count else "")

        yield advance


def local_shards(shards: str) -> Path:
    """The folder of a set; what is behind a URL is copied to this machine first."""
    from unfused_fast.shards.sources.location import is_url

    if not is_url(shards):
        return Path(shards)
    from unfused_fast.console import console
    from unfused_fast.shards.sets.download import local_set

    with bar("downloading") as advance:
        return local_set(shards, on_message=console.print, progress=advance)


def open_set(shards: str) -> ShardSet:
    """The set in a folder, or behind a URL. Raises UserError where there is none, or it is unfinished or damaged."""
    from unfused_fast.shards.sets.table import open_shards

    return open_shards(local_shards(shards))
