"""The rank of this process, from the variables of torchrun or SLURM, or from --devices, which starts the processes and
deletes what killed ones leave.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from unfused_fast.errors import UserError

TIMEOUT_SECONDS = 600.0
"""Longest wait for the other processes. Ours: longer than a compilation, shorter than a night."""
LAUNCH = "UNFUSED_LAUNCH"
"""Variable with the id of what started this process. A run directory that the same launch began is resumed, whatever
the command says of one that is there: its processes were started again.
"""
RESTARTS_LEFT = "UNFUSED_RESTARTS_LEFT"
"""Variable with how often the launcher may start the processes of a run again."""
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name) and (name, signal.getsignal(getattr(signal, name))) != ("SIGHUP", signal.SIG_IGN)
)
"""Signals that stop a command, of those that the system has. SLURM sends SIGUSR1 before it stops a job; SIGHUP comes
when the terminal is closed, and stays ignored where nohup ignores it.
"""
MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""
PORTS = 20000, 20000
"""Under SLURM: the first port, and the number of ports; the job's id selects one."""


def set_handler(
    handler: Callable[[int, FrameType | None], Any], numbers: Iterable[signal.Signals] = STOPPING
) -> dict[signal.Signals, Any]:
    """Sets the handler of signals that stop a command; returns those before, none outside the main thread, which alone
    handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


class Place(NamedTuple):
    """The place of one process among several."""

    rank: int
    world_size: int
    local_rank: int
    """Among the processes of this machine."""
    local_size: int
    address: str
    """Address of rank 0, which the processes connect to."""
    port: int

    def device(self, wanted: str) -> str:
        """The device of this process by --device: the GPU of its local rank, modulo the GPUs that it sees, because with
        SLURM's --gpus-per-task each process sees only its own. Raises UserError for a numbered GPU, since each process
        uses a different one.
        """
        if ":" in wanted:
            raise UserError(f"--device {wanted}: {self.world_size} processes take a GPU each; use --device cuda or cpu")
        if wanted == "cpu":
            return wanted
        import torch

        found = torch.cuda.device_count()
        if wanted == "auto" and not found:
            return "cpu"
        return f"cuda:{self.local_rank % max(1, found)}" if wanted in ("auto", "cuda") else wanted


def started_by_launcher(environment: Mapping[str, str]) -> bool:
    """Whether --devices, --max-restarts or --engine ray started this process, which then has a rank too."""
    return LAUNCH in environment and "RANK" in environment


def temporary_prefix(process: int) -> str:
    """With which the names of a process's temporary folders begin, in MEMORY or on the disk."""
    return f"unfused-of-{process}-"


def delete_temporary(process: int) -> None:
    """Deletes the temporary folders that a process left when it was killed."""
    for place in (MEMORY, Path(tempfile.gettempdir())):
        for left in place.glob(f"{temporary_prefix(process)}*"):
            shutil.rmtree(left, ignore_errors=True)


def place_of(environment: Mapping[str, str]) -> Place | None:
    """This process's place, from the variables of torchrun or SLURM's srun; None for a single process.

    Raises:
        UserError: the variables contradict each other.
    """

    def number(name: str, default: str = "") -> int:
        value = environment.get(name, default)
        if not value.isdecimal():
            raise UserError(f"{name}={value}: want a whole number; start the processes by torchrun or srun")
        return int(value)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, world_size = number("RANK"), number("WORLD_SIZE")
        local_rank, local_size = number("LOCAL_RANK", "0"), number("LOCAL_WORLD_SIZE", "1")
        address, port = environment.get("MASTER_ADDR", ""), number("MASTER_PORT")
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, world_size, local_rank = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS"), number("SLURM_LOCALID")
        counts, node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")), number("SLURM_NODEID", "0")
        if node >= len(counts):
            raise UserError(
                f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE names nodes 0 to {len(counts) - 1}; start the "
                "processes with srun"
            )
        local_size = counts[node]
        address = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_STEP_NODELIST", ""))
        port = number("MASTER_PORT", "0") or PORTS[0] + number("SLURM_JOB_ID") % PORTS[1]
    else:
        return None
    if not address or rank >= world_size:
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={world_size}, MASTER_ADDR={address} do not name a process of a group; start it "
            "by torchrun or srun"
        )
    return Place(rank, world_size, local_rank, local_size, address, port) if world_size > 1 else None


def first_node(nodes: str) -> str:
    """`gpu[03-05,9],cpu1` -> `gpu03`, `rack[1-2]node[7,9]` -> `rack1node7`: the first name of SLURM's list. Raises
    UserError where there is none.
    """
    found = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: contains no node; set MASTER_ADDR to the first one's address")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", found[0])


def tasks_per_node(counts: str) -> list[int]:
    """`4(x2),3` -> 4, 4, 3: SLURM's numbers of processes on each node."""
    return [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
