"""docs/cluster.md shows what `plan` prints; the job files of docs/slurm do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import srun
from command_lines import parse
from outcomes import Cli
from ranks import free_port

DOCS = Path(__file__).parent.parent / "docs"
FILES = sorted((DOCS / "slurm").glob("*.sbatch"))
OPTIONS = {
    *("job-name", "array", "nodes", "ntasks-per-node", "gres", "cpus-per-task", "mem", "exclusive", "time", "requeue"),
    *("open-mode", "signal"),
}
"""Of sbatch, as its manual lists them."""
RECORDER = """#!/bin/sh
{ printf '%s\\036' "$@"; printf '\\035'; } >>"$CALLS"
exit "${CODE:-0}"
"""


def test_the_page_shows_what_plan_prints(cli: Cli) -> None:
    """Nothing is measured for a named GPU, so that its table is the same on every machine."""
    page = (DOCS / "cluster.md").read_text()
    blocks = re.findall(r"^\$ unfused-fast (plan .*)\n([^`]+)```", page, re.MULTILINE)
    assert len(blocks) == 2
    for command, shown in blocks:
        lines = [line.rstrip() for line in cli(*command.split()).out.splitlines()]
        assert lines[: shown.count("\n")] == shown.splitlines()
    ((command, sentence),) = re.findall(r'`(plan [^`]+)` ends with "([^"]+)"', page.replace("\n", " "))
    assert sentence in cli(*command.split()).out


def executable(path: Path, text: str) -> None:
    """A program for a PATH."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job: srun, scontrol and unfused-fast of our own, one task a step."""
    for name in ("unfused-fast", "scontrol"):
        executable(tmp_path / "bin" / name, RECORDER.replace("{ ", f"{{ printf '%s\\036' {name}; ", 1))
    executable(tmp_path / "bin" / "srun", f'#!/bin/sh\nexec {sys.executable} {srun.__file__} "$@"\n')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "9",
    }
    ours = {"CALLS": str(tmp_path / "calls"), "TASKS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {**os.environ, **slurm, **ours, "PATH": path, "OMP_NUM_THREADS": "1"}


def calls(job: dict[str, str]) -> list[list[str]]:
    """What was called, with which arguments."""
    return [call.split("\036")[:-1] for call in Path(job["CALLS"]).read_text().split("\035")[:-1]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_job_files_run_what_the_command_line_takes(file: Path, job: dict[str, str]) -> None:
    assert f"(slurm/{file.name})" in (DOCS / "cluster.md").read_text()
    subprocess.run(["bash", "-n", file], check=True)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", file.read_text(), re.MULTILINE))
    assert len(asked) == file.read_text().count("#SBATCH") and asked.keys() <= OPTIONS
    own = {"pack": ["fsd50k", "/data", "/parts"], "merge": ["/parts", "/set"]}.get(
        file.stem, ["/set", "/run", "--seed", "3"]
    )
    done = subprocess.run(["bash", file, *own], env=job, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = calls(job)
    for program, *arguments in made:
        assert program == "unfused-fast"
        parse(arguments)
    if file.stem.startswith("train"):
        assert asked["gres"].removeprefix("gpu:") == asked["ntasks-per-node"], "a task for each GPU"
        assert asked["signal"].startswith("USR1@"), "to the tasks, not to the batch shell (B:)"
        assert made[0][-2:] == ["--seed", "3"] and "--resume" in made[0]
    elif file.stem == "pack":
        assert made[0][made[0].index("--part") + 1] == "3/9"


@pytest.mark.parametrize(("code", "requeued"), [(130, True), (0, False), (1, False)])
def test_a_job_that_was_stopped_queues_itself_again(code: int, requeued: bool, job: dict[str, str]) -> None:
    executable(
        Path(job["PATH"].split(":")[0]) / "scontrol", RECORDER.replace('"$@"', 'scontrol "$@"').replace("CODE", "NONE")
    )
    file = DOCS / "slurm" / "train-preemptible.sbatch"
    done = subprocess.run(["bash", file, "/set", "/run"], env={**job, "CODE": str(code)}, timeout=60)
    assert done.returncode == code
    assert (["scontrol", "requeue", "77"] in calls(job)) == requeued


@pytest.mark.soak
def test_a_preempted_job_goes_on(job: dict[str, str], tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """Two processes started as by srun: there is no run, so --resume starts one; SIGUSR1 stops and saves it; the same
    file goes on with it to the end.
    """
    executable(tmp_path / "bin" / "unfused-fast", f'#!/bin/sh\nexec {sys.executable} -m unfused_fast "$@"\n')
    out, env = tmp_path / "run", {**job, "TASKS": "2", "MASTER_PORT": str(free_port()), "COLUMNS": "200"}
    command = [
        "bash",
        str(DOCS / "slurm" / "train-preemptible.sbatch"),
        str(tones),
        str(out),
        *tiny,
        "--epochs",
        "4000",
    ]
    started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 90
    while not (out / "log.jsonl").exists() and started.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    step = int(Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text())
    os.kill(step, signal.SIGUSR1)
    said = started.communicate(timeout=90)[1]
    assert started.returncode == 130 and calls(job) == [["scontrol", "requeue", "77"]], said
    assert "on 2 ranks" in said and "saved; continue with --resume" in said
    done = max(json.loads(path.read_text())["epoch"] for path in (out / "checkpoints").glob("*.json"))
    command[-1] = str(done + 2)
    again = subprocess.run([*command, "--resume-anyway"], env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "resuming after" in again.stderr, again.stderr
    assert len((out / "log.jsonl").read_text().splitlines()) == done + 2
    assert calls(job) == [["scontrol", "requeue", "77"]], "what is finished is not queued again"
