"""Where a process stands among those that train together: by torchrun, by SLURM, or by --devices, which starts them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from unfused_fast.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

TIMEOUT_SECONDS = 600.0
"""How long a process waits for the others. Ours: longer than a compile, shorter than a night."""
PORTS = 20000, 20000
"""Under SLURM: the first port, and how many there are; the job's number chooses."""


class Place(NamedTuple):
    """One process of several."""

    rank: int
    world_size: int
    local_rank: int
    """Among those on this machine."""
    local_size: int
    address: str
    """Where the processes meet."""
    port: int
    hosted: bool
    """Whether the launcher keeps the store there; else rank 0 does."""
    attempt: str = "0"
    """Which start of the job this is: torchrun keeps its store when it starts all processes again."""

    def device(self, wanted: str) -> str:
        """This process's part of what --device names: the GPU of its local rank, counted round those that it sees, for
        SLURM's --gpus-per-task shows each process its own. Raises UserError for a GPU of a number: each has its own.
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

    def store(self, timeout: timedelta) -> Store:
        """A connection of its own. Raises RuntimeError when nobody answers."""
        from torch.distributed import PrefixStore, TCPStore

        leads = self.rank == 0 and not self.hosted
        store = TCPStore(
            self.address, self.port, is_master=leads, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
        return PrefixStore(f"attempt {self.attempt}", store)


def place_of(environment: Mapping[str, str]) -> Place | None:
    """What torchrun or SLURM's srun says to this process; None where it works alone.

    Raises:
        UserError: variables that do not fit together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        values = [
            environment.get(name, default) for name, default in zip(names, ("", "", "0", "1", "", ""), strict=True)
        ]
        rank, world_size, local_rank, local_size = _numbers(names[:4], values[:4])
        address, (port,) = values[4], _numbers(names[5:], values[5:])
        if not address or not rank < world_size:
            said = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise UserError(f"these do not say which process this is of how many: {said}; start it by torchrun")
        hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        place = Place(rank, world_size, local_rank, local_size, address, port, hosted, attempt)
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        asked = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_NODEID", "MASTER_PORT")
        given = [
            environment.get(name, default) for name, default in zip(asked, ("", "", "", "", "0", "0"), strict=True)
        ]
        rank, world_size, local_rank, job, node, port = _numbers(asked, given)
        counts = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        if node >= len(counts):
            raise UserError(f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE names nodes 0 to {len(counts) - 1}")
        address = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_STEP_NODELIST", ""))
        port = port or PORTS[0] + job % PORTS[1]
        place = Place(rank, world_size, local_rank, counts[node], address, port, hosted=False)
    else:
        return None
    return place if place.world_size > 1 else None


def first_node(nodes: str) -> str:
    """`gpu[03-05,9],cpu1` -> `gpu03`, `rack[1-2]node[7,9]` -> `rack1node7`: the first name of SLURM's list. Raises
    UserError where there is none.
    """
    found = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: it names no node; set MASTER_ADDR to the first one's address")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", found[0])


def tasks_per_node(counts: str) -> list[int]:
    """`4(x2),3` -> 4, 4, 3: SLURM's numbers of processes on each node."""
    found = list[int]()
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        found += [int(count)] * int(times or 1)
    return found


def _numbers(names: tuple[str, ...], values: list[str]) -> list[int]:
    for name, value in zip(names, values, strict=True):
        if not value.isdecimal():
            raise UserError(f"{name}={value}: want a whole number; start the processes by torchrun or srun")
    return [int(value) for value in values]
