"""One page of what gpu_all.sh measured: how its stages ended, and every row, from the CSV files of its folder."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

SHOWN = ("what", "unit", "p20", "p50", "p80", "settings", "floor_is", "share")
"""Columns of the tables; the rest is the same for all rows, and is said once."""


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def page(folder: Path) -> str:
    """The page's text."""
    read = {path.stem: list(csv.DictReader(path.open(newline=""))) for path in sorted(folder.glob("*.csv"))}
    stages = read.pop("stages")
    files = {name: found for name, found in read.items() if found}  # bench makes its file before it measures
    rows = [row for found in files.values() for row in found]
    about = "; ".join(
        sorted(
            {
                f"{row['device']}, {row['cores']} cores, {row['versions']}, commit {row['commit']}, {row['date']}"
                for row in rows
            }
        )
    )
    parts = [f"# Everything on one machine\n\n{about or 'Nothing was measured.'}\n"]
    parts.append("## Stages\n\n" + table([*stages[0]], [[*stage.values()] for stage in stages]))
    for name, found in files.items():
        columns = [column for column in SHOWN if column in found[0]]
        parts.append(f"## {name}.csv\n\n" + table(columns, [[row[column] for column in columns] for row in found]))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="OUT of gpu_all.sh; gets page.md")
    folder = parser.parse_args().folder
    (folder / "page.md").write_text(page(folder), encoding="utf-8")
    print(f"{folder / 'page.md'}: written")


if __name__ == "__main__":
    main()
