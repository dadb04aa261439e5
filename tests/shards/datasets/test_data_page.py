"""docs/datasets.md: a section for every data set, with commands that the packer takes; docs/data.md: tables, splits."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from unfused_fast.shards.datasets import DATASETS
from unfused_fast.shards.sources.csv_rows import COLUMNS
from unfused_fast.shards.sources.split_names import SPLIT_NAMES

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "datasets.md"
OWN = DOCS / "data.md"


def test_every_data_set_has_commands_that_are_taken() -> None:
    named = set()
    for line in re.findall(r"^unfused-fast shard --dataset .*$", PAGE.read_text(), re.MULTILINE):
        words = shlex.split(line, comments=True)
        name = words[words.index("--dataset") + 1]
        given = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--option")
        assert DATASETS[name].chosen(given).items() >= given.items()
        named.add(name)
    # Of Speech Commands the page shows v2; v1 has the same commands with another number.
    assert named == set(DATASETS) - {"speechcommands-v1"}
    assert all(f"`{name}`" in PAGE.read_text() for name in DATASETS)


def test_usual_names_of_splits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (train|valid|test) \| (.*) \|$", OWN.read_text(), re.MULTILINE)
    assert {split: tuple(names.split(", ")) for split, names in rows} == SPLIT_NAMES
    columns = re.findall(r"^\| `(\w+)` \| [^|]* \|$", OWN.read_text(), re.MULTILINE)
    assert sorted(columns) == sorted(COLUMNS)
