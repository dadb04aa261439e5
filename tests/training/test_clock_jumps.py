"""A clock that is set back or forth by a day changes no result and no save."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_run

from unfused_fast.training.checkpoint import Position
from unfused_fast.training.options import Options, SaveEvery
from unfused_fast.training.saves import Saves

Cli = Callable[..., Any]
DAY = 86400.0


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day goes by one to nine days forth or back from one look to the next; a thread that looks all the
    time, as TensorBoard's does then, takes it no further.
    """
    real, looks = time.time, itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: real() + DAY * (1 + (look := next(looks)) % 9) * (-1) ** look)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    """Positions at which a run of stage 1 saves."""
    found, begin = list[Position](), Saves.begin

    def noted(saves: Saves, position: Position, *more: Any) -> None:
        found.append(position)
        begin(saves, position, *more)

    monkeypatch.setattr(Saves, "begin", noted)
    return found


def test_a_run_saves_when_it_would_and_ends_the_same(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, saved: list[Position], request: pytest.FixtureRequest
) -> None:
    command = ["train", "pretrain", tones, "--epochs", 3, "--save-every", "3600s", *tiny, "--out"]
    assert cli(*command, tmp_path / "whole").code == 0
    request.getfixturevalue("jumping")
    before = time.time()
    assert abs(time.time() - before) > DAY
    done = cli(*command, tmp_path / "jumped")
    assert done.code == 0, done.err
    assert saved == 2 * [Position(1), Position(2), Position(3)], "none within an epoch, though days seem to have passed"
    assert_same_run(tmp_path / "jumped", tmp_path / "whole")


def test_a_save_is_due_by_the_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the time of day goes back by a day."""
    passed, real = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed)
    nothing: Any = None
    saves = Saves(nothing, nothing, nothing, nothing, Options(torch.device("cpu"), save_every=SaveEvery(seconds=600)))
    monkeypatch.setattr(time, "time", lambda: -DAY)
    assert not saves.due(1)
    passed = 601.0
    assert saves.due(2)
