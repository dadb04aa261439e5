"""A page that several scripts write: each replaces its own part, which stands between two comments of its name."""

from __future__ import annotations

from pathlib import Path

from unfused_fast.shards.sets.shard_files import replace_file


def write_part(page: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of `name`; a page without them gets the part at its end."""
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    whole = page.read_text() if page.exists() else ""
    before, found, rest = whole.partition(begin)
    after = rest.partition(end)[2] if found else ""
    replace_file(page, f"{before}{begin}{text}{end}{after}".encode())
