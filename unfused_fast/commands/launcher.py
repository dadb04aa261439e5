"""`--devices N`: starts N processes of the same command, on this machine or with `--engine ray` on a Ray cluster whose
nodes share all files; passes signals on, and ends with them.

Ours: Ray reserves the places and starts the processes, which then find each other as under torchrun. Ray Train calls a
function in a thread of its workers, where no signal can stop a run and save it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple

from unfused_fast.commands.exits import ERROR_FILE, reason_left
from unfused_fast.console import counted
from unfused_fast.errors import UserError, escaped
from unfused_fast.launch import place_of
from unfused_fast.shards.packing.ray_engine import connect
from unfused_fast.shards.packing.workers import available_cores

SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP
STARTED = "UNFUSED_ON_RAY"
"""Variable of a process that was started on a Ray cluster."""
PASSED = ("UNFUSED_", "NCCL_", "GLOO_", "TORCH_", "OMP_", "COLUMNS")
"""Beginnings of the names of variables that go to the other machines."""
PLACE_SECONDS = 60.0
"""How long to wait for places that others take. Ours: a request for more slots than are free should fail."""
GRACE_SECONDS = 30.0
"""How long the others may take to end when one has failed. Source: torchrun."""
LOOK_SECONDS = 0.1


class Failure(NamedTuple):
    """How a process ended that did not succeed."""

    pid: int
    code: int
    """Exit code; of a process that a signal ended, minus its number."""
    reason: str
    """What it left by leave_reason."""


def start_devices(devices: int | None, device: str) -> int | None:
    """Exit code of the N processes that were started; None where this process is to do the work itself.

    Raises:
        UserError: more GPUs than there are, or another number of processes than this one was started among.
    """
    place = place_of(os.environ)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # without it a process that ends prints fifty lines of C++
    if place is not None:
        if devices not in (None, place.world_size):
            raise UserError(
                f"--devices {devices}: this process was started as one of {place.world_size}; leave --devices out "
                "under torchrun and srun"
            )
        return None
    if devices is None or devices == 1:
        return None
    import torch

    if device != "cpu" and (torch.cuda.is_available() or device != "auto"):
        found = torch.cuda.device_count()
        if devices > found:
            raise UserError(
                f"--devices {devices}: PyTorch {torch.__version__} sees {counted(found, 'CUDA device')} here; "
                "give fewer, or use --device cpu"
            )
    return _run_here(devices)


def _run_here(count: int) -> int:
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with socket.create_server(("127.0.0.1", 0), backlog=count) as listening:  # the store alone would listen everywhere
        port = listening.getsockname()[1]
        store = TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listening.detach(),
        )
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // count))),
    }
    hidden = {} if "--debug" in sys.argv else dict.fromkeys(range(1, count), Std.ALL)
    with TemporaryDirectory(prefix="unfused-devices-") as folder:
        context = start_processes(
            "train",
            sys.executable,
            args=dict.fromkeys(range(count), ("-m", "unfused_fast", *sys.argv[1:])),
            envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)},
            logs_specs=DefaultLogsSpecs(folder, redirects=hidden),
        )

        def send(number: int) -> None:
            for process in context.pids().values():
                with suppress(ProcessLookupError):
                    os.kill(process, number)

        try:
            with signals_to(send):
                result = context.wait(period=0.1)
        finally:
            context.close()
        del store
        assert result is not None
        return report(
            {
                rank: Failure(failure.pid, failure.exitcode, reason_left(context.error_files[rank]))
                for rank, failure in result.failures.items()
            }
        )


def report(failures: Mapping[int, Failure]) -> int:
    """The exit code for processes that failed, the first one first; prints their reasons, but for what rank 0 printed
    itself.
    """
    first = next(iter(failures), None)
    printed = {failures[0].reason if 0 in failures else ""}
    for rank, (pid, code, reason) in sorted(failures.items()):
        if code < 0 and (rank == first or code == -signal.SIGKILL):  # SIGTERM ended the others
            print(f"error: rank {rank} (process {pid}) was ended by {signal.Signals(-code).name}", file=sys.stderr)
        elif reason not in printed:
            print(f"rank {rank}: {escaped(reason)}", file=sys.stderr)
            printed.add(reason)
    return 0 if first is None else max(1, failures[first].code)


@contextmanager
def signals_to(send: Callable[[int], None]) -> Iterator[None]:
    """Passes on signals that this process gets."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        send(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_on_ray(count: int, device: str) -> int | None:
    """Exit code of the `count` processes that were started; None where this process is one of them.

    Raises:
        UserError: no Ray, no cluster, not as many CPUs or GPUs, or nodes that do not see the working directory.
    """
    if STARTED in os.environ:
        return None
    if place_of(os.environ) is not None:
        raise UserError("--engine ray starts processes itself; leave it out under torchrun and srun")
    if ":" in device:
        raise UserError(f"--device {device}: on a Ray cluster each process takes a GPU that is free; use --device cuda")
    ray = connect()
    try:
        return _run_on_ray(ray, count, _resources(ray, count, device))
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

    def look(self, signals: list[int]) -> tuple[int | None, str, str, str]:
        """Sends it signals; its exit code, what it has written since the last look, and why it failed."""
        for number in signals:
            self._process.send_signal(number)
        code = self._process.poll()
        out, err = (file.read() for file in self._written)
        reason = "" if code is None else reason_left(self._reason)
        if code is not None:
            self._files.close()
        return code, out, err, reason


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


def _run_on_ray(ray: Any, count: int, needed: dict[str, int]) -> int:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([needed] * count, strategy="PACK")
    if not group.wait(PLACE_SECONDS):
        raise UserError(
            f"--devices {count}: the Ray cluster had no room for so many within {PLACE_SECONDS:.0f} s; give fewer, or "
            "wait (see: ray status)"
        )
    actor = ray.remote(num_cpus=1, num_gpus=needed.get("GPU", 0))(Member)
    members = [
        actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
        for index in range(count)
    ]
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    variables |= {STARTED: "1", "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}  # Ray shows each process one GPU
    variables.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        places = ray.get([member.where.remote() for member in members])
        hosts = [host for host, _ in places]
        variables |= {"MASTER_ADDR": places[0][0], "MASTER_PORT": str(places[0][1])}
        pids = ray.get(
            [
                member.start.remote(
                    sys.argv[1:],
                    str(Path.cwd()),
                    {**variables, "RANK": str(rank), "LOCAL_WORLD_SIZE": str(hosts.count(hosts[rank]))},
                )
                for rank, member in enumerate(members)
            ]
        )
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a node cannot start a process ({str(getattr(error, 'cause', error)).strip().splitlines()[0]}); with "
            f"--engine ray all nodes need unfused-fast, and the folder {Path.cwd()}"
        ) from error
    return _watch(ray, members, pids)


def _watch(ray: Any, members: list[Any], pids: list[int]) -> int:
    """Prints what rank 0 writes until all have ended, or one failed and GRACE_SECONDS are over; the exit code."""
    running, failures = dict(enumerate(members)), dict[int, Failure]()
    signals, deadline = list[int](), float("inf")
    with signals_to(signals.append):  # Ray may not be called where a signal comes in between
        while running and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            sent = [signals.pop(0) for _ in range(len(signals))]
            for rank, member in list(running.items()):
                out = err = ""
                code: int | None
                try:
                    code, out, err, reason = ray.get(member.look.remote(sent))
                except ray.exceptions.RayError as error:
                    code, reason = 1, f"error: Ray lost it ({str(error).strip().splitlines()[0]})"
                if rank == 0:
                    print(out, end="", flush=True)
                    print(err, end="", flush=True, file=sys.stderr)
                if code is not None:
                    del running[rank]
                if code:
                    failures[rank] = Failure(pids[rank], code, reason)
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    for rank in running:
        print(f"error: rank {rank} (process {pids[rank]}) does not end and is killed", file=sys.stderr)
    return report(failures)
