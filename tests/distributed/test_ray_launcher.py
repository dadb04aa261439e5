"""`--engine ray`: the same training as on one machine, on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rank_jobs import run_jobs
from same_runs import log_of
from waiting import wait_for

ray = pytest.importorskip("ray", reason="comes with the extra ray")

Start = Callable[..., "subprocess.Popen[str]"]
IMPORTED = os.pathsep.join(filter(None, sys.path))
"""Where processes that tests start find what this one imports."""


NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node, one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", IMPORTED)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        made.add_node(**NODE)
        made.wait_for_nodes()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def start(cluster: Any, cli_process: Start) -> Start:
    """The command line in a process of its own, on the cluster."""
    return partial(cli_process, RAY_ADDRESS=cluster.address, PYTHONPATH=IMPORTED)


def processes_of(out: Path) -> list[int]:
    """Those that train into `out`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(out).encode() in line and b"UNFUSED_LAUNCH=" in variables:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_the_same_training_as_on_this_machine(start: Start, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    command = ["train", "pretrain", str(tones), *tiny, "--epochs", "2", "--json", "--out"]
    (here,) = run_jobs([{"ranks": 2, "usual": True, "arguments": [*command, str(tmp_path / "here")]}])
    assert [end["code"] for end in here] == [0, 0], here
    there = start(*command, "there", "--devices", 2, "--engine", "ray", cwd=tmp_path)
    out, err = there.communicate(timeout=180)
    assert there.returncode == 0 and "on 2 ranks" in err, err
    assert json.loads(out)["run"] == "there", "rank 0's output is this process's"
    assert [row["loss"] for row in log_of(tmp_path / "here")] == [row["loss"] for row in log_of(tmp_path / "there")]


@pytest.mark.soak
def test_a_signal_stops_all_and_an_end_of_one_ends_or_restarts_all(
    start: Start, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, *tiny, "--epochs", 5000, "--devices", 2, "--engine", "ray", "--resume"]
    started = start(*command, "--out", out, "--save-every", "1steps")
    wait_for(lambda: (out / "log.jsonl").exists(), started)
    started.send_signal(signal.SIGUSR1)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 130 and said.count("saved; continue with --resume") == 1, said
    lines = [len(log_of(out))]
    started = start(*command, "--out", out, "--max-restarts", 1)
    killed = list[int]()
    for _ in range(2):  # started again after the first, not after the second
        wait_for(lambda: len(log_of(out)) > lines[-1], started)
        lines.append(len(log_of(out)))
        killed.append(max(processes_of(out)))
        os.kill(killed[-1], signal.SIGKILL)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 1 and f"(process {killed[1]}) was ended by SIGKILL\n" in said, said
    assert f"(process {killed[0]}) was ended by SIGKILL; restart 1 of 1: {out} continues from epoch-" in said, said
    assert "continue with --resume" in said and "Traceback" not in said and not processes_of(out), said


@pytest.mark.soak
def test_a_node_that_is_lost_and_comes_back(
    start: Start, cluster: Any, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, *tiny, "--epochs", 5000, "--devices", 2, "--engine", "ray", "--out", out]
    started = start(*command, "--save-every", "1steps", "--max-restarts", 1)
    wait_for((out / "log.jsonl").exists, started)
    before = set(processes_of(out))
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    cluster.add_node(**NODE)
    wait_for(lambda: len(set(processes_of(out)) - before) == 2, started)
    lines = len(log_of(out))
    wait_for(lambda: len(log_of(out)) > lines, started)
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 130 and "Ray lost it" in said and f"restart 1 of 1: {out} continues from" in said, said
    assert said.count("saved; continue with --resume") == 1 and "Traceback" not in said, said


@pytest.mark.soak
def test_who_starts_it_takes_it_along(start: Start, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(
        "train", "pretrain", tones, *tiny, "--epochs", 5000, "--devices", 2, "--engine", "ray", "--out", out
    )
    wait_for(lambda: (out / "log.jsonl").exists(), started)
    assert len(processes_of(out)) == 2
    started.kill()
    started.communicate()
    until = time.monotonic() + 60
    while processes_of(out) and time.monotonic() < until:
        time.sleep(0.2)
    assert not processes_of(out)


def test_what_a_cluster_cannot_do(
    cluster: Any, cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    command = ["train", "pretrain", tones, "--out", tmp_path / "run", "--engine", "ray", *tiny]
    asked: dict[str, list[object]] = {
        "--devices 4: the Ray cluster has 2 CPUs and 0 GPUs, but each process takes one CPU": ["--devices", 4],
        "--devices 1: the Ray cluster has 2 CPUs and 0 GPUs, but each process takes one CPU and one GPU": [
            "--device",
            "cuda",
        ],
        "--device cuda:1: on a Ray cluster": ["--device", "cuda:1"],
    }
    for sentence, flags in asked.items():
        done = cli(*command, *flags)
        assert done.code == 1 and done.error.startswith(sentence), done.err
    assert not (tmp_path / "run").exists()


def test_no_cluster(tones: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train", "pretrain", tones, "--out", tmp_path / "run", "--engine", "ray"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster at 127.0.0.1:1" in cli(*command).error
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "--engine ray needs Ray, which is not installed; in a checkout: pip install '.[ray]'" in cli(*command).error
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "leave it out under torchrun and srun" in cli(*command).error
