"""Several processes that train together: the same run as one, on any number of them; what they say of each other."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks as harness
import torch
from collapsing import COLLAPSES
from same_runs import assert_same_run, log_of

from unfused_fast.bank_read import Generation
from unfused_fast.errors import UserError
from unfused_fast.launch import Place, first_node, place_of, tasks_per_node
from unfused_fast.ranks import ALONE
from unfused_fast.shards.shard_files import read_index
from unfused_fast.shares import Share

Start = Callable[..., "subprocess.Popen[str]"]
Cli = Callable[..., Any]
RANKS = (1, 2, 4)
DECAR_V1 = "model.encoder=audiontt data.crop_seconds=0.95 cluster.algo=pca_kmeans cluster.pca_dim=8"
KINDS = {
    "pretrain": ["pretrain", "--set", "optim.lr=0.05"],
    "streamed, running norm, two heads": [
        *("pretrain", "--data", "stream", "--set", "optim.lr=0.05", "--set", "data.norm=running"),
        *("--set", "cluster.k=4,6", "--set", "bank.init_mode=train", "--set", "train.batch_size=17"),
    ],
    "decar-v1": [
        "pretrain",
        "--preset",
        "decar-v1",
        *(word for value in DECAR_V1.split() for word in ("--set", value)),
    ],
    "distill": ["distill", "--set", "pseudo.refresh_epochs=2"],
}
"""Name -> stage and flags. Sixty clips: the last batch of an epoch is partial, and shares of a batch differ in size."""


def environment() -> dict[str, str]:
    """Of processes that tests start: they find what this one imports."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_jobs(jobs: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """What tests/support/ranks.py gives."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(harness.__file__)), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.fixture(scope="module")
def trained(
    tones: Path, pretrained: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """`trained(kind, ranks)`: a finished run of three epochs."""
    folder = tmp_path_factory.mktemp("ranks")

    def out(kind: str, ranks: int) -> Path:
        return folder / f"{kind.split()[0]}-{ranks}-{len(kind)}"

    jobs = []
    for kind, (stage, *flags) in KINDS.items():
        more = ["--teacher", str(pretrained)] if stage == "distill" else []
        for ranks in RANKS:
            command = ["train", stage, str(tones), *more, "--out", str(out(kind, ranks)), "--epochs", "3"]
            jobs.append({"ranks": ranks, "arguments": [*command, *tiny, *flags]})
    for job, ends in zip(jobs, run_jobs(jobs, folder), strict=True):
        assert [end["code"] for end in ends] == [0] * job["ranks"], (job, ends)
        assert all(not end["said"] for end in ends[1:]), "rank 0 alone speaks"
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_trains_the_same(trained: Callable[[str, int], Path], kind: str) -> None:
    one, *others = (trained(kind, ranks) for ranks in RANKS)
    for other in others:
        for wanted, found in zip(log_of(one), log_of(other), strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5), "the loss of each epoch"
            exact = set(wanted) - {"loss", "mean_cosine", "inertia"}
            assert {name: found[name] for name in exact} == {name: wanted[name] for name in exact}, "clusters, rates"
        if KINDS[kind][0] == "pretrain":
            banks = [Generation(run / "bank.zarr" / "gen-000003") for run in (one, other)]
            for block, same in zip(*(bank.chunks() for bank in banks), strict=True):
                assert torch.equal(block.assignments, same.assignments)
                torch.testing.assert_close(block.rows, same.rows, rtol=0, atol=1e-4)


def test_a_run_goes_on_on_another_number_of_ranks(
    trained: Callable[[str, int], Path], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Stopped within an epoch on two ranks, to the end on two: the same bits; on one or three, rounded otherwise."""
    stage, *flags = KINDS["pretrain"]
    whole = trained("pretrain", 2)
    stopped = [tmp_path / f"on-{ranks}" for ranks in (1, 2, 3)]
    command = ["train", stage, str(tones), *tiny, *flags, "--epochs", "3", "--out"]
    begun = run_jobs([{"ranks": 2, "arguments": [*command, str(out)], "stop_after": 5} for out in stopped], tmp_path)
    assert all(end["code"] == 130 for ends in begun for end in ends), begun
    assert "stopped in epoch 2 after 2 of 3 steps, saved" in begun[0][0]["said"]
    ended = run_jobs(
        [
            {"ranks": ranks, "arguments": [*command, str(out), "--resume"]}
            for ranks, out in zip((1, 2, 3), stopped, strict=True)
        ],
        tmp_path,
    )
    assert all(end["code"] == 0 for ends in ended for end in ends), ended
    assert_same_run(stopped[1], whole)
    for ranks, out, ends in zip((1, 3), stopped[::2], ended[::2], strict=True):
        assert f"on {ranks} ranks now, 2 before" in re.sub(r"\s+", " ", ends[0]["said"])
        losses = [[row["loss"] for row in log_of(run)] for run in (out, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_rank_ends_before_the_last_save_is_written(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """Who started them takes an end for a fault, and would end rank 0 at its work."""
    command = ["train", "pretrain", str(tones), *tiny, "--out", str(tmp_path / "run")]
    job = {"ranks": 2, "arguments": command, "stop_after": 2, "slow_saves": str(tmp_path / "run" / "checkpoints")}
    (ends,) = run_jobs([job], tmp_path)
    assert [end["code"] for end in ends] == [130, 130], ends
    assert all(re.search(r"at the end: epoch-\S+json", end["said"]) for end in ends), ends


def test_ranks_skip_the_clips_that_cannot_be_read(tiny: list[str], copy_without_caches: Path, tmp_path: Path) -> None:
    """A shard ends before its last three clips: they are silent on any number of ranks, and named once."""
    tar = sorted(copy_without_caches.glob("train-*.tar"))[-1]
    lost = [members[0] for members in read_index(tar.with_suffix(".idx"))][-3:]
    tar.write_bytes(tar.read_bytes()[: lost[0].offset])
    flags = ["--epochs", "2", "--data", "stream", "--skip-bad", "3", "--set", "train.batch_size=17"]
    command = ["train", "pretrain", str(copy_without_caches), *tiny, *flags, "--out"]
    outs = {ranks: tmp_path / f"on-{ranks}" for ranks in (1, 2)}
    jobs = [{"ranks": ranks, "arguments": [*command, str(out)]} for ranks, out in outs.items()]
    for job, ends in zip(jobs, run_jobs(jobs, tmp_path), strict=True):
        assert [end["code"] for end in ends] == [0] * job["ranks"], ends
        keys = [member.name.partition(".")[0] for member in lost]
        assert [re.sub(r"\s+", " ", ends[0]["said"]).count(f"clip {key} of {tar.name}: ") for key in keys] == [1, 1, 1]
        assert all(not end["said"] for end in ends[1:])
        out = outs[job["ranks"]]
        assert json.loads((out / "result.json").read_text())["skipped"] == {"clips": 3, "keys": keys}
        noted = json.loads((out / "checkpoints/epoch-000002.json").read_text())["skipped"]
        assert len(noted) == job["ranks"] and {clip for ids in noted for clip in ids} == set(map(int, keys))
    for wanted, found in zip(*map(log_of, outs.values()), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


@pytest.fixture
def copy_without_caches(tones: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be damaged."""
    return Path(shutil.copytree(tones, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache")))


def test_layers_of_a_shared_batch_are_those_of_the_whole(tmp_path: Path) -> None:
    """BatchNorm, dropout, gradients and gathered rows against torch's own layers on the whole batch, in float64."""
    (ends,) = run_jobs([{"ranks": 3, "check": "layers"}], tmp_path)
    assert [end["code"] for end in ends] == [0, 0, 0], ends


def test_collapsed_clusters_stop_every_rank(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "pretrain", str(tones), "--out", str(out), "--epochs", "8", *tiny, *COLLAPSES]
    ((first, second),) = run_jobs([{"ranks": 2, "flat": True, "arguments": arguments}], tmp_path)
    assert first["code"] == second["code"] == 1, first["said"] + second["said"]
    assert "error: epoch 3: the clusters have collapsed" in first["said"] and "Traceback" not in second["said"]
    assert sorted(path.name for path in (out / "checkpoints").glob("*.json"))[-1] == "epoch-000002.json"


def test_parts_of_a_batch_are_ranks_without_shared_statistics(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """--accumulate 2 on one process takes the parts that two ranks take at once with model.sync_bn = false."""
    values = "model.sync_bn=false model.dropout=0 optim.lr=0.05 bank.init_mode=eval train.batch_size=20"
    flags = [*tiny, *(word for value in values.split() for word in ("--set", value)), "--epochs", "1"]
    command = ["train", "pretrain", str(tones), *flags, "--out"]
    ends = run_jobs(
        [
            {"ranks": 1, "arguments": [*command, str(tmp_path / "parts"), "--accumulate", "2"]},
            {"ranks": 2, "arguments": [*command, str(tmp_path / "ranks")]},
            {"ranks": 1, "arguments": [*command, str(tmp_path / "whole")]},
        ],
        tmp_path,
    )
    assert all(end["code"] == 0 for job in ends for end in job), ends
    parts, ranks, whole = (log_of(tmp_path / name)[0]["loss"] for name in ("parts", "ranks", "whole"))
    assert parts == pytest.approx(ranks, rel=1e-5) and parts != pytest.approx(whole, rel=1e-4)


def test_gradients_in_bf16_are_near(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    command = ["train", "pretrain", str(tones), *tiny, "--epochs", "2", "--out"]
    run_jobs(
        [
            {"ranks": 2, "arguments": [*command, str(tmp_path / name), "--set", f"train.gradients={name}"]}
            for name in ("fp32", "bf16")
        ],
        tmp_path,
    )
    fp32, bf16 = (log_of(tmp_path / name)[0]["loss"] for name in ("fp32", "bf16"))
    assert fp32 != bf16 and bf16 == pytest.approx(fp32, rel=0.01)


def test_devices_starts_processes_that_stop_together(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--devices", 2, "--save-every", "1steps"]
    started = cli_process(*command, "--epochs", 5000)
    _wait_for(lambda: (out / "log.jsonl").exists(), started)
    for process in (started.pid, _rank(started.pid, 0), _rank(started.pid, 1)):
        assert set(_listens_on(process)) <= {"127.0.0.1"}, (
            "the processes of one machine are not to be reached from others"
        )
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 130 and "saved; go on with --resume" in said and "Traceback" not in said, said
    assert said.count("saved; go on with --resume") == 1, "what all ranks have to say is said once"
    refused = cli_process(*command, "--epochs", 5000)
    said = refused.communicate(timeout=60)[1]
    assert refused.returncode == 1 and said.count("error:") == 1 and "use --resume to go on" in said, said


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_or_hangs_is_named(
    cli_process: Start, tones: Path, tiny: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = ["train", "pretrain", tones, "--out", out, *tiny, "--devices", 2, "--save-every", "1steps"]
    started = cli_process(*command, "--epochs", 5000, "--timeout", 8)
    _wait_for(lambda: (out / "log.jsonl").exists(), started)
    time.sleep(2.5)  # a sign of life comes every second
    victim = _rank(started.pid, 1)
    os.kill(victim, how)
    said = started.communicate(timeout=120)[1]
    assert started.returncode != 0 and "Traceback" not in said, said
    told = re.sub(r"\s+", " ", said)
    assert f"rank 1 (process {victim} on " in told and "ended or does not answer" in told, said
    assert re.search(r"at: epoch \d+", told) and "is the last one saved, go on with --resume" in told, said
    assert "was ended by SIGKILL" in told
    assert not Path(f"/proc/{victim}").exists()
    checkpoint = max(json.loads(path.read_text())["step"] for path in (out / "checkpoints").glob("*.json"))
    assert checkpoint > 0 and (out / "config.json").exists()


def test_what_cannot_be_started(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    command = ["train", "pretrain", tones, "--out", tmp_path / "run", *tiny]
    assert (
        "--devices 2: PyTorch"
        in cli("train", "pretrain", tones, "--out", tmp_path, "--device", "cuda", "--devices", 2).error
    )
    assert "a batch of 16 clips a process has 16" in cli(*command, "--accumulate", 17).error
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "want a whole number; start the processes by torchrun or srun" in cli(*command).error
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(harness.free_port()))
    assert "--devices 3: this process was started as one of 2" in cli(*command, "--devices", 3).error
    assert "2 processes take a GPU each" in cli(*command, "--device", "cuda:0").error
    assert "did not find each other at 127.0.0.1" in cli(*command, "--timeout", 5).error


def test_places_by_torchrun_and_slurm() -> None:
    assert place_of({}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    torchrun |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert place_of(torchrun) == Place(3, 8, 1, 2, "node1", 29500, hosted=False)
    assert place_of({**torchrun, "TORCHELASTIC_USE_AGENT_STORE": "True"}) == Place(3, 8, 1, 2, "node1", 29500, True)
    assert place_of({**torchrun, "RANK": "0", "WORLD_SIZE": "1"}) is None
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    assert place_of(slurm) == Place(5, 6, 1, 2, "gpu03", 20000 + 123456 % 20000, hosted=False)
    assert place_of({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None, "a batch script, no srun"
    with pytest.raises(UserError, match="SLURM_PROCID=: want a whole number"):
        place_of({"SLURM_STEP_NUM_TASKS": "4"})
    with pytest.raises(UserError, match="these do not say which process this is"):
        place_of({**torchrun, "RANK": "8"})


def test_names_and_numbers_of_slurm() -> None:
    for nodes, first in [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[7,9-11]", "gpu7"),
        ("a1,b2", "a1"),
        ("rack1-node[001-004]-ib", "rack1-node001-ib"),
        ("login.example.org", "login.example.org"),
    ]:
        assert first_node(nodes) == first
    assert tasks_per_node("4(x2),3") == [4, 4, 3] and tasks_per_node("2") == [2]
    with pytest.raises(UserError, match="it names no node"):
        first_node("")


def test_shares_cover_every_batch_once() -> None:
    for clips, batch_size, ranks in ((61, 16, 3), (64, 16, 4), (5, 5, 5), (17, 8, 7)):
        found = np.concatenate([Share(rank, ranks).positions(clips, batch_size) for rank in range(ranks)])
        assert sorted(found.tolist()) == list(range(clips))
        for begin in range(0, clips, batch_size):
            sizes = Share(0, ranks).sizes(min(batch_size, clips - begin))
            assert sum(sizes) == min(batch_size, clips - begin) and max(sizes) - min(sizes) <= 1
        assert len({len(Share(rank, ranks).batches(clips, batch_size)) for rank in range(ranks)}) == 1


def test_a_process_alone_exchanges_nothing() -> None:
    tensor = torch.arange(3.0)
    assert ALONE.leads and not ALONE.together and ALONE.first(lambda: 5) == 5
    assert (
        ALONE.sum(tensor) is tensor
        and ALONE.gather_rows(tensor) is tensor
        and ALONE.agree(True, False) == (True, False)
    )
    assert ALONE.texts("x") == ["x"]


def _wait_for(done: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 90
    while not done():
        if started.poll() is not None or time.monotonic() > until:
            started.kill()
            raise AssertionError(started.communicate())
        time.sleep(0.1)


def _rank(launcher: int, rank: int) -> int:
    """The process of a rank that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in map(int, children):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"{launcher} has no rank {rank}: {children}")


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
