"""The three stages as functions, and runs to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import Cli


@pytest.fixture
def pretrain(cli: Cli, tiny: list[str]) -> Cli:
    """`pretrain(shards, out, ...)`: two tiny epochs, the settings of the run `pretrained`."""
    return lambda shards, out, *more: cli("train", "pretrain", shards, "--out", out, "--epochs", 2, *tiny, *more)


@pytest.fixture
def distill(cli: Cli, tiny: list[str]) -> Cli:
    return lambda shards, teacher, out, *more: cli(
        "train", "distill", shards, "--teacher", teacher, "--out", out, "--epochs", 1, *tiny, *more
    )


@pytest.fixture
def linear(cli: Cli, tiny: list[str]) -> Cli:
    return lambda shards, encoder, out, *more: cli(
        "train", "linear", shards, "--encoder", encoder, "--out", out, "--epochs", 2, *tiny, *more
    )


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a set or run, to be damaged."""
    caches = shutil.ignore_patterns("*.cache")  # a run that finds log-mels does not read the audio
    return lambda path: Path(shutil.copytree(path, tmp_path / f"copy of {path.name}", ignore=caches))


@pytest.fixture
def unfinished(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """The run `pretrained`, whose result is not yet written."""
    run = copy_of(pretrained)
    (run / "result.json").unlink()
    return run
