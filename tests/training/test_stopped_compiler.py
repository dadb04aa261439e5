"""Signals while torch.compile compiles the first graph: the run ends as stopped, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from same_runs import assert_same_run

from unfused_fast.optional import missing_compiler
from unfused_fast.training.run_directory import SAME_SIGNAL_SECONDS

Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(missing_compiler("C++") is not None, reason=f"needs {missing_compiler('C++')}"),
]


@pytest.fixture
def train(cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`train(name, cache, *flags)`: an epoch of a compiled run; `cache` is a folder that keeps what was compiled."""

    def start(name: str, cache: str, *flags: str) -> subprocess.Popen[str]:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / cache))
        flags = ("--epochs", "1", "--compile", "--save-every", "1steps", *flags)
        return cli_process("train", "pretrain", tones, "--out", tmp_path / name, *tiny, *flags)

    return start


def wait_for_a_kernel(run: subprocess.Popen[str], cache: Path) -> None:
    """Until the compiler compiles a kernel that the cache does not hold yet."""
    held = set(cache.rglob("*.main.cpp"))
    while set(cache.rglob("*.main.cpp")) <= held:
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)


def test_a_first_signal_lets_the_step_finish(train: Start, tmp_path: Path) -> None:
    """The pass that fills the bank compiles first; with its kernels in the cache the first step does."""
    for how in ("stopped before the first epoch; nothing is saved yet", "stopped after batch 1 of epoch 1, saved"):
        stopped = train("run", "cache")
        wait_for_a_kernel(stopped, tmp_path / "cache")
        stopped.send_signal(signal.SIGTERM)
        said = stopped.communicate()[1]
        assert stopped.returncode == 130 and how in said, said
    for name, flags in (("run", ["--resume"]), ("whole", [])):
        going = train(name, "cache", *flags)
        said = going.communicate()[1]
        assert going.returncode == 0, said
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("twice", [True, False])
def test_what_ends_the_compiler_ends_the_run(train: Start, tmp_path: Path, twice: bool) -> None:
    """A second signal, or one to the whole group of processes, as Ctrl-C sends it: nothing is left of the run."""
    stopped = train("run", "cache")
    wait_for_a_kernel(stopped, tmp_path / "cache")
    if twice:
        assert stopped.stderr is not None
        stopped.send_signal(signal.SIGTERM)
        while "stopping after this step" not in stopped.stderr.readline():
            assert stopped.poll() is None
        time.sleep(2 * SAME_SIGNAL_SECONDS)  # one that comes at once is the same, passed on
        stopped.send_signal(signal.SIGTERM)
    else:
        os.killpg(stopped.pid, signal.SIGTERM)
    said = stopped.communicate()[1]
    assert stopped.returncode == 130 and "Traceback" not in said, said
    ends = ["at once, nothing is saved yet; continue with --resume"]
    if not twice:  # the compiler may have ended just before the signal
        ends = ["while a graph was compiled; nothing was saved", "before the first epoch; nothing is saved yet"]
    assert said.splitlines()[-1] in [f"{tmp_path / 'run'}: stopped {how}" for how in ends]
    assert not (tmp_path / "run").exists()
