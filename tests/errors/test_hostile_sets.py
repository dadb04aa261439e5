"""manifest.json of a stranger's shard set: one sentence, exit code 1, nothing read outside the set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, refused

SPOILT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shards above the set": lambda value: value["splits"]["train"].update(shards=["../other/train-000000.tar"]),
    "shards elsewhere": lambda value: value["splits"]["train"].update(shards=["/etc/passwd"]),
    "a shard that is the folder above": lambda value: value["splits"]["train"].update(shards=[".."]),
    "shards that are numbers": lambda value: value["splits"]["train"].update(shards=[7]),
    "shards that are a number": lambda value: value["splits"]["train"].update(shards=7),
    "shards that are text": lambda value: value["splits"]["train"].update(shards="train-000000.tar"),
    "clips of text": lambda value: value["splits"]["train"].update(clips="many"),
    "endless clips": lambda value: value["splits"]["train"].update(clips=float("inf")),
    "splits that are a list": lambda value: value.update(splits=["train"]),
    "a split that is a list": lambda value: value.update(splits={"train": []}),
    "names that are a number": lambda value: value.update(label_names=7),
    "another codec": lambda value: value.update(codec="../wav"),
    "another rate": lambda value: value.update(sample_rate="16000"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_manifests_of_something_else(
    cli: Cli, linear: Cli, copy_of: Callable[[Path], Path], tones: Path, tmp_path: Path, case: str
) -> None:
    shards = copy_of(tones)
    value = json.loads((shards / "manifest.json").read_text())
    SPOILT[case](value)
    (shards / "manifest.json").write_text(json.dumps(value))
    refused(linear(shards, "random", tmp_path / "out"), shards / "manifest.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "7", "NaN", "[" * 100_000, '{"a":' * 100_000, "\x00"])
def test_manifests_that_are_none(
    linear: Cli, copy_of: Callable[[Path], Path], tones: Path, tmp_path: Path, text: str
) -> None:
    shards = copy_of(tones)
    (shards / "manifest.json").write_text(text)
    refused(linear(shards, "random", tmp_path / "out"), shards / "manifest.json")
