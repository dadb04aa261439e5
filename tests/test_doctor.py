"""`unfused-fast doctor` against pyproject.toml; the first lines of its help and of its neighbours'."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from outcomes import Cli

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=!~;\\[ ]", line)[0] for line in requirements}


def test_every_requirement_of_the_project_is_looked_for(cli: Cli) -> None:
    found = {line["name"]: line for line in json.loads(cli("doctor", "--json").out)}
    assert names(PROJECT["dependencies"]) <= found.keys()
    assert {"google-crc32c", "indexed_gzip"} <= found.keys()
    extras = PROJECT["optional-dependencies"]
    ways = extras.keys() - {"cpu", "cuda12", "cuda13", "dev"}
    optional = set[str]().union(*(names(extras[way]) for way in ways))
    assert {"ray", "fsspec", "s3fs", "gcsfs", "scikit-learn", "onnx"} <= optional <= found.keys()
    for name in names(PROJECT["dependencies"]) | optional:
        version = found[name]["found"]
        assert version == "missing" or version.startswith(importlib.metadata.version(name).split("+")[0])


def test_what_is_missing_is_named_with_what_installs_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("soxr", "s3fs"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    done = cli("doctor", "--json")
    found = {line["name"]: line for line in json.loads(done.out)}
    assert done.code == 1
    assert not found["soxr"]["works"] and re.search(r"needed; .* pip install '\.\[", found["soxr"]["note"])
    assert found["s3fs"]["works"] and found["s3fs"]["note"].endswith(
        "behind URLs; in a checkout: pip install '.[remote]'"
    )


def test_a_checkout_that_is_not_installed_is_not_ready(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    done = cli("doctor")
    assert done.code == 1 and "what it needs is not known" in done.out and "not ready" in done.out


@pytest.mark.parametrize("command", [["clusters"], ["doctor"], ["train", "pretrain"]])
def test_the_first_sentence_of_the_help_fits_a_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    listed = cli(*command[:-1], "--help").out
    (line,) = [line for line in listed.splitlines() if re.match(rf"\W*{command[-1]}\s", line)]
    sentence = line.split(command[-1], 1)[1].strip(" │|")
    assert len(sentence) <= 75 and sentence.endswith(".")
