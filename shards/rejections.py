"""rejected.csv: every file, or piece of one, that did not make it, and why."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unfused_fast.errors import escaped
from unfused_fast.shards.pack_shard import Rejection
from unfused_fast.shards.table import REJECTED


def by_reason(rejected: Sequence[Rejection]) -> dict[str, int]:
    """Rows of each reason, most frequent first."""
    counts = Counter(reason for _, _, reason, _ in rejected)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def write_rejected(folder: Path, rejected: Sequence[Rejection]) -> None:
    """Writes rejected.csv: path, reason; sorted by path."""
    with (folder / REJECTED).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows((source, text) for source, _, _, text in sorted(rejected))


def summary(rejected: Sequence[Rejection], files: int) -> str:
    """One sentence for the case that nothing was usable."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in by_reason(rejected).items())
    examples = "; ".join(f"{escaped(source)} ({text})" for source, _, _, text in sorted(rejected)[:3])
    return f"{files} files, none of them usable: {reasons}; for example {examples}"
