"""--max-restarts: processes that died are started again and resume, and which errors may not come again."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rank_jobs import rank_process, rank_processes, run_jobs
from same_runs import assert_same_run
from waiting import wait_for

from unfused_fast.commands.exits import ERROR_FILE, end, reason_left
from unfused_fast.commands.launching.launcher import Failure
from unfused_fast.distributed.ranks import RankLost, Ranks
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.launch import RESTARTS_LEFT

Start = Callable[..., "subprocess.Popen[str]"]


def test_processes_that_die_are_started_again(
    cli_process: Start, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    """One is killed before the run directory is its own, and one in mid-epoch: the first begins again, though an older
    run is there, and the second resumes, though --overwrite is given. The end is that of an undisturbed run.
    """
    out = Path(shutil.copytree(pretrained, tmp_path / "run"))
    command, older = ["train", "pretrain", str(tones), *tiny, "--epochs", "10"], (out / "config.json").read_text()
    flags = ["--devices", 2, "--save-every", "1steps", "--overwrite", "--max-restarts", 2]
    started = cli_process(*command, *flags, "--out", out)
    wait_for(lambda: rank_processes(started.pid).keys() == {0, 1}, started)
    first = rank_processes(started.pid)
    left = Path(tempfile.mkdtemp(prefix=f"unfused-of-{first[0]}-", dir="/dev/shm"))
    os.kill(first[0], signal.SIGKILL)
    assert (out / "config.json").read_text() == older, "killed before"
    wait_for(lambda: not (out / "config.json").exists() or (out / "config.json").read_text() != older, started)
    wait_for((out / "log.jsonl").exists, started)
    assert not left.exists(), "temporary folders of a killed process are deleted"
    second = rank_processes(started.pid)[1]
    os.kill(second, signal.SIGKILL)
    said = started.communicate(timeout=180)[1]
    assert started.returncode == 0 and "Traceback" not in said, said
    assert f"rank 0 (process {first[0]}) was ended by SIGKILL; restart 1 of 2: {out} begins again" in said
    assert f"rank 1 (process {second}) was ended by SIGKILL; restart 2 of 2: {out} continues from epoch-000" in said
    assert said.count(f"{out}: resuming after ") == 1 and "error: " not in said
    (whole,) = run_jobs([{"ranks": 2, "usual": True, "arguments": [*command, "--out", str(tmp_path / "whole")]}])
    assert [end["code"] for end in whole] == [0, 0], whole
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), torch.OutOfMemoryError),
        (RuntimeError("[pair.cc:553] Connection closed by peer"), RankLost),
    ],
)
def test_a_device_without_memory_is_no_lost_rank(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gather allocates; where that fails, the same command would fail again."""

    def all_gather(*given: object) -> None:
        raise error

    ranks = Ranks()
    monkeypatch.setattr(ranks, "group", object())
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    with pytest.raises(raised):
        ranks.gather(torch.ones(2))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (RankLost("another process of this run ended"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (UserError("data.partitions = 8"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (Interrupted("stopped after epoch 3, saved"), False),
    ],
)
def test_which_errors_may_not_come_again(
    error: Exception, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "reason"))
    with pytest.raises(SystemExit) as ended:
        end(error)
    left = reason_left(tmp_path / "reason")
    assert left is not None and Failure(1, int(str(ended.value.code)), left).may_succeed == again


@pytest.mark.parametrize(
    ("error", "left", "said"),
    [
        (
            RankLost("another process ended after step 3; continue with --resume"),
            1,
            "another process ended after step 3",
        ),
        (
            RankLost("another process ended; continue with --resume"),
            0,
            "error: another process ended; continue with --resume",
        ),
        (UserError("data.partitions = 8; want 4"), 1, "error: data.partitions = 8; want 4"),
    ],
)
def test_advice_is_given_only_where_no_restart_follows(
    error: Exception, left: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RESTARTS_LEFT, str(left))
    with pytest.raises(SystemExit):
        end(error)
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.soak
def test_torchrun_starts_a_run_again_that_goes_on(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--epochs", 60, "--save-every", "1steps", "--resume"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1]
    started = subprocess.Popen(
        [str(word) for word in (*launch, "-m", "unfused_fast", *command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    wait_for(lambda: (out / "log.jsonl").exists(), started)
    os.kill(rank_process(started.pid, 1), signal.SIGKILL)
    said = started.communicate(timeout=180)[0]
    assert started.returncode == 0, said
    assert json.loads((out / "result.json").read_text())["last_epoch"] == 60
    epochs = [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 61))


@pytest.mark.soak
def test_all_stages_go_on_where_their_process_died(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """One process, killed in the second stage: the first stage is finished, and the second resumes."""
    out = tmp_path / "runs"
    flags = ["--epochs", 80, "--save-every", "1steps", "--max-restarts", 1, "--overwrite"]
    started = cli_process("train", "all", tones, "--out", out, *tiny, *flags)
    wait_for((out / "distill" / "log.jsonl").exists, started)
    victim = rank_process(started.pid, 0)
    os.kill(victim, signal.SIGKILL)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 0 and (out / "verdict.json").exists() and "Traceback" not in said, said
    killed = f"rank 0 (process {victim}) was ended by SIGKILL; restart 1 of 1: {out / 'distill'} continues from epoch-"
    assert killed in said and f"{out / 'pretrain'}: already finished" in said, said
    assert f"{out / 'distill'}: resuming after " in said and "on 1 ranks" not in said, said


@pytest.mark.soak
def test_ten_kills_of_any_rank_lose_nothing(cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """At random moments of a start or a step, of a streaming run that saves after each step: it ends as the undisturbed
    one, bit for bit, and no temporary folder is left on the disk or in memory.
    """
    kills, chance, temporary = 10, random.Random(7), tmp_path / "temporary"
    temporary.mkdir()
    flags = ["--epochs", 30, "--devices", 2, "--save-every", "1steps", "--data", "stream", "--out"]
    command = ["train", "pretrain", tones, *tiny, *flags]
    undisturbed = cli_process(*command, tmp_path / "whole")
    assert undisturbed.communicate(timeout=300) and undisturbed.returncode == 0
    started = cli_process(*command, tmp_path / "run", "--max-restarts", kills, TMPDIR=str(temporary))
    seen, saves, before = set[int](), tmp_path / "run" / "checkpoints", set[Path]()
    for number in range(kills):
        wait_for(lambda: len(set(rank_processes(started.pid).values()) - seen) == 2, started)
        now = rank_processes(started.pid)
        seen.update(now.values())
        if number % 3:  # the others die while they start
            before.update(saves.glob("*.json"))
            wait_for(lambda: not before.issuperset(saves.glob("*.json")), started)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(now[chance.randrange(2)], signal.SIGKILL)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 0 and said.count("was ended by SIGKILL; restart ") == kills, said
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not list(temporary.iterdir())
    assert not [left for process in seen for left in Path("/dev/shm").glob(f"*{process}*")]
