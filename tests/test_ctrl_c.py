"""Ctrl-C while `train pretrain` runs, in a process of its own and in this one: nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_ctrl_c_ends_the_process_after_its_step_and_resume_goes_on(
    cli: Cli, cli_process: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """That the end is the undisturbed run's is in tests/training/test_loop.py."""
    stopped, epochs = tmp_path / "stopped", 8
    arguments = ["train", "pretrain", tones, "--out", stopped, "--epochs", epochs, *tiny]
    process = cli_process(*arguments)
    log, deadline = stopped / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    done_epochs = len(log.read_text().splitlines())
    assert 1 <= done_epochs < epochs and out == ""
    assert "stopping after this step; press Ctrl-C again to stop immediately" in err
    said = re.escape(str(stopped)) + (
        rf": stopped after (batch \d of epoch {done_epochs + 1}|epoch {done_epochs}), saved; "
        "continue with --resume"
    )
    assert re.fullmatch(said, err.splitlines()[-1]) and "Traceback" not in err and "error" not in err

    resumed = cli(*arguments, "--resume")
    assert resumed.code == 0 and re.search(
        rf"resuming after (epoch {done_epochs}$|batch \d of epoch {done_epochs + 1})", resumed.err, re.M
    )
    assert log.read_text().count("\n") == epochs


def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unfused_fast.methods.deep_clustering import DeepClustering

    real = DeepClustering._write_bank

    def pressed(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DeepClustering, "_write_bank", pressed)
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny)
    assert done.code == 130 and done.err.splitlines()[-1].endswith(
        "stopped before the first epoch; nothing is saved yet"
    )
    assert list(tmp_path.iterdir()) == []
