"""Processes of one run: how they are started, find their places and their share, and end."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks as harness
import torch
from rank_jobs import rank_process, rank_processes
from waiting import wait_for

from unfused_fast.commands.exits import ERROR_FILE, end, reason_left
from unfused_fast.commands.launching import launcher
from unfused_fast.config.fields import Config
from unfused_fast.distributed.ranks import Ranks
from unfused_fast.distributed.shares import Share
from unfused_fast.errors import UserError
from unfused_fast.launch import LAUNCH, Place, first_node, place_of, tasks_per_node
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options, train_loader

Start = Callable[..., "subprocess.Popen[str]"]
Cli = Callable[..., Any]


LEAVES_ONE = """
import os, signal, subprocess
if "RANK" in os.environ:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    subprocess.Popen(["sleep", "300"])
"""


def test_devices_starts_processes_that_stop_together(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--devices", 2, "--save-every", "1steps"]
    command += ["--max-restarts", 3]  # of those that died, not of those that were stopped or refused
    started = cli_process(*command, "--epochs", 5000)
    wait_for(lambda: (out / "log.jsonl").exists(), started)
    for process in (started.pid, rank_process(started.pid, 0), rank_process(started.pid, 1)):
        assert set(_listens_on(process)) <= {"127.0.0.1"}, (
            "the processes of one machine are not to be reached from others"
        )
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 130 and "saved; continue with --resume" in said and "Traceback" not in said, said
    assert said.count("saved; continue with --resume") == 1, "what all ranks have to say is said once"
    assert "restart" not in said
    # what a rank started and left holds its output open: it ends too
    (tmp_path / "sitecustomize.py").write_text(LEAVES_ONE)
    found = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    refused = cli_process(*command, "--epochs", 5000, PYTHONPATH=found)
    said = refused.communicate(timeout=100)[1]
    # a rank that is slow to end may be ended, and that is an error of its own
    assert refused.returncode == 1 and said.count("use --resume to continue") == 1 and "restart" not in said, said


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.soak)])
def test_a_rank_that_is_gone_or_hangs_is_named(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--devices", 2, "--save-every", "1steps"]
    started = cli_process(*command, "--epochs", 5000, "--timeout", 8)
    wait_for(lambda: (out / "log.jsonl").exists(), started)
    victim = rank_process(started.pid, 1)
    os.kill(victim, how)
    said = started.communicate(timeout=120)[1]
    assert started.returncode != 0 and "Traceback" not in said, said
    assert re.search(
        r"another process of this run ended or does not answer .* after step \d+; .* the last one saved, continue with",
        said,
    )
    ended = "was ended by SIGKILL" if how == signal.SIGKILL else "did not end and was killed"
    assert f"error: rank 1 (process {victim}) {ended}" in said
    assert not Path(f"/proc/{victim}").exists()
    checkpoint = max(json.loads(path.read_text())["step"] for path in (out / "checkpoints").glob("*.json"))
    assert checkpoint > 0 and (out / "config.json").exists()


def test_a_reason_that_cannot_be_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of a launcher that is gone, and one that a full disk cut short."""
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "gone" / "reason"))
    with pytest.raises(SystemExit):
        end(UserError("data.partitions = 8"))
    assert capsys.readouterr().err == "error: data.partitions = 8\n"
    (tmp_path / "reason").write_text('{"message": "error: da')
    assert reason_left(tmp_path / "gone" / "reason") is None is reason_left(tmp_path / "reason")


@pytest.mark.soak
def test_signals_while_ranks_start_and_a_launcher_that_is_killed(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--devices", 2, "--epochs", 5000]
    for number in (signal.SIGTERM, signal.SIGINT):
        started = cli_process(*command)
        wait_for(lambda: 0 in rank_processes(started.pid), started)  # noqa: B023
        started.send_signal(number)
        assert started.communicate(timeout=120)[1] == "interrupted\n"
        assert started.returncode == 130 and not out.exists()
    started = cli_process(*command, "--save-every", "1steps", TMPDIR=str(tmp_path))
    wait_for((out / "log.jsonl").exists, started)
    started.kill()
    assert "stopped after epoch" in started.communicate(timeout=120)[1], "the ranks save, and end"


def test_what_cannot_be_started(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "pretrain", tones, "--out", tmp_path / "run", *tiny]
    refused = "3 processes cannot share data.partitions = 8 evenly; use 2 or 4 processes"
    with monkeypatch.context() as alone:  # no process is started
        alone.setattr(launcher, "_run_here", None)
        assert refused in cli(*command, "--devices", 3).error
        assert "optim.lr = much: want a number" in cli(*command, "--devices", 2, "--set", "optim.lr=much").error
    monkeypatch.setenv(LAUNCH, "without a rank")
    assert "--devices 2: PyTorch" in cli(*command, "--device", "cuda", "--devices", 2).error
    assert "a batch of 16 clips a process has 16" in cli(*command, "--set", "train.accumulate=17").error
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "want a whole number; start the processes by torchrun or srun" in cli(*command).error
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(harness.free_port()))
    assert "--devices 3: this process was started as one of 2" in cli(*command, "--devices", 3).error
    assert "2 processes take a GPU each" in cli(*command, "--device", "cuda:0").error
    monkeypatch.delenv(LAUNCH)
    assert "--max-restarts 1: under torchrun and srun" in cli(*command, "--max-restarts", 1).error
    assert "could not connect at 127.0.0.1" in cli(*command, "--timeout", 5).error
    importing = ["import", tones, tmp_path / "model", "--layout", "byol-a", "--mean", 0, "--std", 1]
    exporting = ["bank", "export", tones, "--out", tmp_path / "bank.npz"]
    out = ["--out", tmp_path / "run", "--device", "cpu"]
    for alone in (
        *(["shard", tones, tmp_path / "set"], ["merge", tones, tmp_path / "set"], importing, exporting),
        *(["train", "finetune", tones, "--encoder", pretrained, *out], ["ablate", tones, *out, "--vary", "optim.lr=1"]),
        ["export", pretrained, "--hub", tmp_path / "model"],
    ):
        said = "this command runs as one process, but was started as one of 2, which would all write the same files"
        assert said in cli(*alone).error
    monkeypatch.setenv("RANK", "1")
    second = cli(*alone)
    assert (second.code, second.out, second.err) == (1, "", ""), "the first says it"
    assert not list(tmp_path.iterdir())


def test_a_process_without_a_clip_of_a_batch(tones: Path) -> None:
    """The clips of the second of two are left out."""
    ranks = Ranks()
    ranks.share, ranks.world_size = Share(1, 2), 2
    options = Options(torch.device("cpu"), ranks=ranks)
    with pytest.raises(UserError, match="of a batch of 10 clips one of the 2 processes has none; use fewer of them"):
        train_loader(Config(), open_shards(tones), options, 10, range(30, 60))


def test_places_by_torchrun_and_slurm() -> None:
    assert place_of({}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    torchrun |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert place_of(torchrun) == Place(3, 8, 1, 2, "node1", 29500)
    assert place_of({**torchrun, "RANK": "0", "WORLD_SIZE": "1"}) is None
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    assert place_of(slurm) == Place(5, 6, 1, 2, "gpu03", 20000 + 123456 % 20000)
    assert place_of({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None, "a batch script, no srun"
    for given, said in (
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID=: want a whole number"),
        ({**slurm, "MASTER_PORT": "http"}, "MASTER_PORT=http: want a whole number"),
        ({**slurm, "SLURM_NODEID": "2"}, "SLURM_NODEID=2, but SLURM_STEP_TASKS_PER_NODE names nodes 0 to 1; start the"),
        ({**torchrun, "RANK": "8"}, "RANK=8, WORLD_SIZE=8, MASTER_ADDR=node1 do not name a process"),
    ):
        with pytest.raises(UserError, match=said):
            place_of(given)


@pytest.mark.parametrize(
    ("visible", "local_rank", "device"),
    [(4, 3, "cuda:3"), (8, 3, "cuda:3"), (1, 0, "cuda:0"), (1, 3, "cuda:0"), (2, 3, "cuda:1"), (0, 3, "cuda:0")],
)
def test_each_process_takes_a_gpu_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, device: str
) -> None:
    """All of a machine's, or under `srun --gpus-per-task` its own, counted from 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    place = Place(local_rank, 4, local_rank, 4, "node1", 29500)
    assert place.device("cuda") == device and place.device("cpu") == "cpu"
    assert place.device("auto") == (device if visible else "cpu")
    with pytest.raises(UserError, match="4 processes take a GPU each"):
        place.device("cuda:0")


def test_names_and_numbers_of_slurm() -> None:
    for nodes, first in [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[7,9-11]", "gpu7"),
        ("a1,b2", "a1"),
        ("rack1-node[001-004]-ib", "rack1-node001-ib"),
        ("login.example.org", "login.example.org"),
        ("rack[1-2]node[07,9],cpu1", "rack1node07"),
    ]:
        assert first_node(nodes) == first
    assert tasks_per_node("4(x2),3") == [4, 4, 3] and tasks_per_node("2") == [2]
    with pytest.raises(UserError, match="contains no node"):
        first_node("")


def _listens_on(process: int) -> list[str]:
    """Addresses at which a process takes connections."""
    links = [str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    found = []
    for name, width in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                words = bytes.fromhex(fields[1].partition(":")[0])
                turned = b"".join(words[at : at + 4][::-1] for at in range(0, width, 4))
                found.append(str(ipaddress.ip_address(turned)))
    return found
