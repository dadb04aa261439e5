"""`--engine ray`: starts the processes of a run on a Ray cluster whose nodes share all files.

Ours: Ray reserves the places and starts the processes, which then find each other as under torchrun. Ray Train's
TorchTrainer (2.60) saves no lines, since processes, their output, signals and the check of slots would stay ours. It
waits without end for slots that the cluster lacks, takes Ctrl-C for itself and aborts its workers, passes no other
signal on, starts all again after any error, and needs pandas, tensorboardX and storage that the nodes share; two
trivial processes took it 48 s, and 3 s as started here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unfused_fast.commands.exits import ERROR_FILE, reason_left
from unfused_fast.commands.launching.launcher import GRACE_SECONDS, LOOK_SECONDS, Failure, signals_to, with_restarts
from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.launch import delete_temporary, place_of, started_by_launcher
from unfused_fast.shards.packing.ray_engine import connect
from unfused_fast.shards.packing.workers import available_cores

PASSED = ("UNFUSED_", "NCCL_", "GLOO_", "TORCH_", "OMP_", "COLUMNS")
"""Beginnings of the names of variables that go to the other machines."""
PLACE_SECONDS = 60.0
"""How long to wait for places that others take. Ours: a request for more slots than are free should fail."""


def start_on_ray(count: int | None, device: str, out: Path, restarts: int) -> int | None:
    """Exit code of the `count` processes that were started; None where this process is one of them. `out` and
    `restarts` as in start_devices.

    Raises:
        UserError: no Ray, no cluster, not as many CPUs or GPUs, or nodes that do not see the working directory.
    """
    if started_by_launcher(os.environ):
        return None
    if place_of(os.environ) is not None:
        raise UserError("--engine ray starts processes itself; leave it out under torchrun and srun")
    if ":" in device:
        raise UserError(f"--device {device}: on a Ray cluster each process takes a GPU that is free; use --device cuda")
    ray = connect()
    try:
        return _run_on_ray(ray, count or 1, _resources(ray, count or 1, device), out, restarts)
    finally:
        ray.shutdown()


class Member:
    """An actor: one process of the run, on the node where Ray has put it."""

    def where(self) -> tuple[str, int]:
        """Address of the node, and a port of it that nobody listens on."""
        from ray.util import get_node_ip_address

        with socket.socket() as taken:
            taken.bind(("", 0))
            return str(get_node_ip_address()), int(taken.getsockname()[1])  # type: ignore[no-untyped-call]

    def start(self, arguments: list[str], folder: str, own: dict[str, str]) -> int:
        """Starts the process in `folder`; its number."""
        self._files = ExitStack()
        place = Path(self._files.enter_context(TemporaryDirectory(prefix="unfused-ray-")))
        self._reason = place / "reason"
        threads = max(1, available_cores() // int(own["LOCAL_WORLD_SIZE"]))  # Ray sets 1
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **own, ERROR_FILE: str(self._reason)}
        out, err = (self._files.enter_context((place / name).open("wb")) for name in ("out", "err"))
        command = [sys.executable, "-m", "unfused_fast", *arguments]
        self._process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err)
        self._written = [self._files.enter_context((place / name).open(encoding="utf-8")) for name in ("out", "err")]
        return self._process.pid

    def look(self, signals: list[int]) -> tuple[int | None, str, str, tuple[str, bool] | None]:
        """Sends it signals; its exit code, what it has written since the last look, and why it failed."""
        for number in signals:
            self._process.send_signal(number)
        code = self._process.poll()
        out, err = (file.read() for file in self._written)
        left = None if code is None else reason_left(self._reason)
        if code is not None:
            self._files.close()
            delete_temporary(self._process.pid)
        return code, out, err, left


def _resources(ray: Any, count: int, device: str) -> dict[str, int]:
    """What each process needs. Raises UserError when the cluster has less."""
    found = {name: int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}
    on_gpus = device == "cuda" or (device == "auto" and found["GPU"] > 0)
    needed = {"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
    if any(count > found[name] for name in needed):
        there = f"{counted(found['CPU'], 'CPU')} and {counted(found['GPU'], 'GPU')}"
        raise UserError(
            f"--devices {count}: the Ray cluster has {there}, but each process takes "
            f"{' and '.join(f'one {name}' for name in needed)}; give fewer --devices, or another --device"
        )
    return needed


def _run_on_ray(ray: Any, count: int, needed: dict[str, int], out: Path, restarts: int) -> int:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([needed] * count, strategy="PACK")
    actor = ray.remote(num_cpus=1, num_gpus=needed.get("GPU", 0))(Member)
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    passed |= {"WORLD_SIZE": str(count), "LOCAL_RANK": "0"}  # Ray shows each process one GPU

    def start(variables: dict[str, str], deadline: float) -> tuple[list[Any], list[int]]:
        if not group.wait(PLACE_SECONDS):  # also when a node was lost
            raise UserError(
                f"--devices {count}: the Ray cluster had no room for so many within {PLACE_SECONDS:.0f} s; give fewer, "
                "or wait (see: ray status)"
            )
        members = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
            for index in range(count)
        ]
        try:
            places = ray.get([member.where.remote() for member in members])
            hosts = [host for host, _ in places]
            shared = {**passed, **variables, "MASTER_ADDR": places[0][0], "MASTER_PORT": str(places[0][1])}
            starting = [
                member.start.remote(
                    sys.argv[1:],
                    str(Path.cwd()),
                    {**shared, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(hosts.count(hosts[rank]))},
                )
                for rank, member in enumerate(members)
            ]
            return members, ray.get(starting)
        except ray.exceptions.RayError as error:
            _end(ray, members)
            if time.monotonic() < deadline:
                time.sleep(1)
                return start(variables, deadline)
            raise UserError(
                f"a node cannot start a process ({str(getattr(error, 'cause', error)).strip().splitlines()[0]}); with "
                f"--engine ray all nodes need unfused-fast, and the folder {Path.cwd()}"
            ) from error

    def attempt(variables: dict[str, str], came: list[int]) -> dict[int, Failure]:
        # of a node that was just lost Ray may not know yet
        patience = 0.0 if variables["TORCHELASTIC_RESTART_COUNT"] == "0" else PLACE_SECONDS
        members, pids = start(variables, time.monotonic() + patience)
        failures = _watch(ray, members, pids, came)
        _end(ray, members)  # their places are for the next attempt
        return failures

    return with_restarts(attempt, out, restarts)


def _end(ray: Any, members: list[Any]) -> None:
    for member in members:
        ray.kill(member)


def _watch(ray: Any, members: list[Any], pids: list[int], came: list[int]) -> dict[int, Failure]:
    """Prints what rank 0 writes until all have ended; kills them when one failed GRACE_SECONDS ago. As an Attempt."""
    running, failures = dict(enumerate(members)), dict[int, Failure]()
    deadline = float("inf")
    with signals_to(came.append):  # Ray may not be called where a signal comes in between
        passed = len(came)
        while running:
            time.sleep(LOOK_SECONDS)
            sent = came[passed:]
            passed += len(sent)
            hung = time.monotonic() > deadline
            for rank, member in list(running.items()):
                out = err = ""
                left: tuple[str, bool] | None
                try:
                    code, out, err, left = ray.get(member.look.remote([signal.SIGKILL] if hung else sent))
                except ray.exceptions.RayError as error:
                    code, left = 1, (f"Ray lost it ({str(error).strip().splitlines()[0]})", True)
                if rank == 0:
                    print(out, end="", flush=True)
                    print(err, end="", flush=True, file=sys.stderr)
                if code is not None:
                    del running[rank]
                if code:
                    failures[rank] = Failure(pids[rank], code, left, hung)
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return failures
