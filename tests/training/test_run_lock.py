"""Two runs in one directory: the second is refused while the first is at work, and not after it died."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unfused_fast.config.presets import preset
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run
from unfused_fast.training.run_lock import LOCK, RunLock

Start = Callable[..., "subprocess.Popen[str]"]


def test_a_directory_is_locked_once_and_free_again(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    first.take()
    with pytest.raises(UserError, match=f"process {os.getpid()} on {re.escape(socket.gethostname())} is using"):
        second.take()
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.take()
    with pytest.raises(UserError, match="is using"):
        first.take()
    second.release()


def test_what_a_dead_process_left_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    lock = RunLock(tmp_path)
    lock.take()
    assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    lock.release()


MANY = """
import fcntl, multiprocessing, sys
from pathlib import Path
from unfused_fast.errors import UserError
from unfused_fast.training.run_lock import RunLock

directory, context = Path(sys.argv[1]), multiprocessing.get_context("fork")
seen = context.Value("i", 0)

def many():
    for _ in range(2000):
        lock = RunLock(directory)
        try:
            lock.take()
        except UserError:
            continue
        with (directory.parent / "inside").open("a") as inside:
            fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where two are inside
            seen.value += 1
        lock.release()

workers = [context.Process(target=many) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(*(worker.exitcode for worker in workers), seen.value)
"""


def test_no_two_are_ever_inside(tmp_path: Path) -> None:
    """The file is removed at each release: who opened it before holds a lock on nothing, and has to notice."""
    directory = tmp_path / "run"
    directory.mkdir()
    done = subprocess.run([sys.executable, "-c", MANY, str(directory)], capture_output=True, text=True)
    *codes, seen = map(int, done.stdout.split())
    assert codes == [0, 0, 0] and seen > 100, done.stderr


def test_a_run_made_since_the_directory_was_looked_at_is_kept(tones: Path, tmp_path: Path) -> None:
    config, shards = preset("recommended", "pretrain"), open_shards(tones)
    options = Options(torch.device("cpu"))
    first = Run(tmp_path / "run", "pretrain", config, shards, options)
    with Run(tmp_path / "run", "pretrain", config, shards, options) as second:
        second.start()
        second.finish({"loss": 1.0})
    with first, pytest.raises(UserError, match="another process made a run there meanwhile; use --resume"):
        first.start()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["loss"] == 1.0


def test_a_second_process_is_refused_and_a_dead_one_is_no_hindrance(
    cli: Callable[..., Any], cli_process: Start, unlabelled: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", unlabelled, "--out", out, *tiny]
    first = cli_process(*command, "--epochs", 5000)
    try:
        while not (out / "log.jsonl").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        config = (out / "config.json").read_bytes()
        for flag in ("--resume", "--overwrite"):
            second = cli(*command, "--epochs", 5000, flag)
            assert second.code == 1 and f"process {first.pid} on {socket.gethostname()} is using" in second.error
        assert (out / "config.json").read_bytes() == config
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    assert (out / LOCK).exists()
    again = cli(*command, "--epochs", 1, "--overwrite")
    assert again.code == 0 and json.loads((out / "result.json").read_text())["last_epoch"] == 1
    assert not (out / LOCK).exists()
