"""A kill while the directory of a run is made or cleared leaves what the same command takes again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import LOCK, Run

CALLS = {"as its description gets its name": (Path, "replace"), "as it is flushed": (os, "fsync")}
Given = tuple[str, Config, ShardSet]
OPTIONS, AGAIN = Options(torch.device("cpu")), Options(torch.device("cpu"), overwrite=True)


@pytest.fixture
def given(tones: Path) -> Given:
    return "linear", preset("recommended", "linear"), open_shards(tones)


def killed_in_start(out: Path, given: Given, options: Options, owner: Any, name: str, number: int) -> None:
    """Starts a run in a process that is killed as it calls a function for the `number`-th time."""
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        return
    try:
        run, listed = Run(out, *given, options), Path.iterdir
        # a file system lists in any order
        Path.iterdir = lambda folder: iter(sorted(listed(folder)))  # type: ignore[method-assign]
        original, calls = getattr(owner, name), 0

        def kill(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given)

        setattr(owner, name, kill)
        run.start()
    finally:
        os._exit(1)


@pytest.mark.parametrize("moment", CALLS)
@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_the_description(given: Given, tmp_path: Path, moment: str, resume: bool) -> None:
    out = tmp_path / "run"
    killed_in_start(out, given, OPTIONS, *CALLS[moment], 1)
    assert {path.name for path in out.iterdir()} == {LOCK, "config.json.new"}
    with Run(out, *given, Options(torch.device("cpu"), resume=resume)) as again:
        again.start()
        again.finish({"valid": 1.0})
    assert {path.name for path in out.iterdir()} == {LOCK, "config.json", "result.json"}


def test_killed_while_an_earlier_run_is_cleared(given: Given, tmp_path: Path) -> None:
    """Whatever is deleted by then."""
    for number in range(1, 6):
        out = tmp_path / str(number)
        with Run(out, *given, OPTIONS) as first:
            first.start()
            for name in ("log.jsonl", "confusion.png", "clusters.png"):
                (out / name).write_text("of the earlier run")
            first.finish({"valid": 1.0})
        killed_in_start(out, given, AGAIN, Path, "unlink", number)
        assert len(list(out.iterdir())) == 6 - number + 1, "one less each time, and the lock"
        with Run(out, *given, AGAIN) as again:
            again.start()
            again.finish({"valid": 0.5})
        assert json.loads((out / "result.json").read_text())["valid"] == 0.5
        assert {path.name for path in out.iterdir()} == {LOCK, "config.json", "result.json"}
