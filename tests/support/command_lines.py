"""Whether a command line is one that unfused-fast takes."""

from __future__ import annotations

import typer

from unfused_fast.cli import app

COMMAND = typer.main.get_command(app)
UsageError = typer.BadParameter.__bases__[0]
"""What the command line raises for what is not there; of click, or of Typer's own copy of it."""

MissingParameter = next(kind for kind in typer.BadParameter.__subclasses__() if kind.__name__ == "MissingParameter")
"""What it raises for what is left out."""


def parse(arguments: list[str]) -> None:
    """As the command line does, up to the call. Raises UsageError for what is not there."""
    context = COMMAND.make_context("unfused-fast", arguments)
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
