"""What an adapter makes of a miniature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import DATASETS
from unfused_fast.shards.datasets.dataset import Discovery
from unfused_fast.shards.sources.row import SourceRow


def found(name: str, root: Path, **given: str) -> Discovery:
    return DATASETS[name].discover(root, given)


def notes(name: str, root: Path, **given: str) -> str:
    return " ".join(found(name, root, **given).notes)


def splits(rows: Iterable[SourceRow]) -> Counter[str]:
    return Counter(row.split for row in rows)


def refused(words: str, name: str, root: Path, **given: str) -> None:
    with pytest.raises(UserError, match=words):
        found(name, root, **given)
