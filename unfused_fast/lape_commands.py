"""`unfused-fast tasks` and `lape`: the papers' tasks, listed and run; part of the command line in cli.py."""

from __future__ import annotations

from dataclasses import asdict

import typer

from unfused_fast.terminal import Json, print_json, stdout_console


def tasks(as_json: Json = False) -> None:
    """The papers' tasks: data set, labels, split, and the numbers that the papers print."""
    from unfused_fast.report import terminal_table
    from unfused_fast.tasks import DECAR_TASKS, LAPE_TASKS, TASKS

    if as_json:
        print_json([asdict(task) for task in TASKS.values()])
        return
    columns = ["name", "title", "data set", "classes", "seconds", "split"]
    printed = stdout_console()
    for title, listed in (("LAPE, by UnFuSeD Table 1", LAPE_TASKS), ("DECAR, Tables 1 to 3", DECAR_TASKS)):
        rows = []
        for task in listed:
            options = "".join(f" {key}={value}" for key, value in task.options.items())
            rows.append(
                [task.name, task.title, task.dataset + options, f"{task.classes:,}", f"{task.seconds:g}", task.split]
            )
        printed.print(terminal_table(title, columns, rows))
        names = list(listed[0].results)
        numbers = [
            [task.title, *("" if value is None else f"{value:.1f}" for value in task.results.values())]
            for task in listed
        ]
        printed.print(terminal_table("accuracy in %, as printed", ["task", *names], numbers))
        for task in listed:
            if task.unclear:
                typer.echo(f"{task.name}: {task.unclear}")
