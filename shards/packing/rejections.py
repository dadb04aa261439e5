"""rejected.csv: every file, or piece of one, that is not in the set, and why."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from unfused_fast.console import counted
from unfused_fast.errors import UserError, cause, escaped
from unfused_fast.shards.packing.pack_shard import Rejection
from unfused_fast.shards.sets.table import REJECTED

_PIECE = re.compile(r"piece \d+ of \d+: ")


def by_reason(texts: Iterable[str]) -> dict[str, int]:
    """Texts of rejected.csv -> rows of each reason, most frequent first."""
    reasons = Counter(_PIECE.sub("", text, count=1).partition(": ")[0] for text in texts)
    return dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))


def read_reasons(folder: Path) -> dict[str, int]:
    """As by_reason, of the rejected.csv of a finished set. Raises UserError: there is none, or it is malformed."""
    path = folder / REJECTED
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return by_reason([row["reason"] for row in csv.DictReader(stream, strict=True)])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: not a valid list of rejected files ({cause(error)}); copy the set "
            "again or replace it with --overwrite"
        ) from error


def write_rejected(folder: Path, rejected: Sequence[Rejection]) -> None:
    """Writes rejected.csv: path, reason; sorted by path."""
    with (folder / REJECTED).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows((source, text) for source, _, text in sorted(rejected))


def nothing_usable(rejected: Sequence[Rejection], files: int) -> UserError:
    """The error of a pack in which every file was rejected."""
    counts = by_reason(text for *_, text in rejected)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    examples = "; ".join(f"{escaped(source)} ({text})" for source, _, text in sorted(rejected)[:3])
    return UserError(
        f"{counted(files, 'file')}, none of them usable: {reasons}; for example {examples}; nothing was written: name "
        "audio that libsndfile reads"
    )
