"""Two runs in one directory: the second is refused while the first is at work, and not after it died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unfused_fast.training.run_directory import LOCK

Start = Callable[..., "subprocess.Popen[str]"]


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
