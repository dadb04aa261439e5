"""`--devices N`: starts N processes of the same command, on this machine or with `--engine ray` on a Ray cluster
(ray_launcher.py); passes signals on, starts them again where `--max-restarts` permits, and ends with them.

Ours, over torch's start_processes, and not torch's elastic_launch: that starts all again after any exit code, 1 (an
error of the user) and 130 (stopped) too, says nothing of it, and raises SignalException where a signal came, which
loses the exit code; to change this, three of its agent's methods had to be overridden.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple
from uuid import uuid4

from unfused_fast.commands.exits import INTERRUPTED, reason_left
from unfused_fast.console import counted
from unfused_fast.errors import UserError, escaped
from unfused_fast.launch import (
    LAUNCH,
    RESTARTS_LEFT,
    STOPPING,
    delete_temporary,
    place_of,
    set_handler,
    started_by_launcher,
)
from unfused_fast.shards.packing.workers import available_cores

GRACE_SECONDS = 30.0
"""How long the others may take to end when one has failed. Source: torchrun."""
LOOK_SECONDS = 0.1
MOST_ON_A_CPU = 8
"""Processes that may be more than there are cores. Ours: as many as train can share `data.partitions` among."""
PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h; see prctl(2)."""


class Failure(NamedTuple):
    """How a process ended that did not succeed."""

    pid: int
    code: int
    """Exit code; of a process that a signal ended, minus its number."""
    left: tuple[str, bool] | None
    """What it left by leave_reason."""
    hung: bool = False
    """Whether it had to be killed, GRACE_SECONDS after another one failed."""

    @property
    def may_succeed(self) -> bool:
        """Whether the process may succeed when it is started again: a signal ended it, or it says so."""
        return self.code < 0 if self.left is None else self.left[1]


Attempt = Callable[[dict[str, str], list[int]], dict[int, Failure]]
"""Starts all processes, with variables, and waits for them; signals that come are passed on, and added to the list. The
failures by rank, the first one first.
"""


def start_devices(devices: int | None, device: str, out: Path, restarts: int) -> int | None:
    """Exit code of the N processes that were started; None where this process is to do the work itself.

    Args:
        out: the run directory.
        restarts: see with_restarts.

    Raises:
        UserError: more than there are GPUs, or cores, or another number of processes than this one was started among,
            or restarts where others started this one.
    """
    launched = started_by_launcher(os.environ)
    if launched:
        _begin_as_launched()
    place = place_of(os.environ)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # without it a process that ends prints fifty lines of C++
    if place is not None:
        if devices not in (None, place.world_size):
            raise UserError(
                f"--devices {devices}: this process was started as one of {place.world_size}; leave --devices out "
                "under torchrun and srun"
            )
        if restarts and not launched:
            raise UserError(
                f"--max-restarts {restarts}: under torchrun and srun this process cannot start the others again; leave "
                "it out, and use torchrun's own --max-restarts with --resume, or requeue the job"
            )
        return None
    if launched or (devices in (None, 1) and not restarts):
        return None
    devices = devices or 1
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        raise UserError(f"--devices {devices}: this system has no signal masks; leave --devices and --max-restarts out")
    import torch

    if devices > 1 and device != "cpu" and (torch.cuda.is_available() or device != "auto"):
        found = torch.cuda.device_count()
        if devices > found:
            raise UserError(
                f"--devices {devices}: PyTorch {torch.__version__} sees {counted(found, 'CUDA device')} here; "
                "give fewer, or use --device cpu"
            )
    elif devices > (most := max(available_cores(), MOST_ON_A_CPU)):
        raise UserError(
            f"--devices {devices}: this machine has {counted(available_cores(), 'core')}, on which so many processes "
            f"wait for each other; give at most {most}"
        )
    return _run_here(devices, out, restarts)


def _begin_as_launched() -> None:
    """Takes the signals that _run_here held back while this process started, and on Linux ends as on SIGTERM when the
    launcher was killed, which then stops nobody.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _run_here(count: int, out: Path, restarts: int) -> int:
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # signals_to does; torch's handlers would stay after it
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
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // count))),
    }
    hidden = {} if "--debug" in sys.argv else dict.fromkeys(range(1, count), Std.ALL)

    def attempt(variables: dict[str, str], came: list[int]) -> dict[int, Failure]:
        processes = list[int]()

        def pass_on(number: int) -> None:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, number)

        def send(number: int) -> None:
            came.append(number)
            pass_on(number)

        with signals_to(send):
            # they inherit it, and take signals once they can end in order: see _begin_as_launched
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                context = start_processes(
                    "train",
                    sys.executable,
                    args=dict.fromkeys(range(count), ("-m", "unfused_fast", *sys.argv[1:])),
                    envs={
                        rank: {**shared, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                        for rank in range(count)
                    },
                    logs_specs=DefaultLogsSpecs(folder, redirects=hidden),
                )
                processes.extend(context.pids().values())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for number in came:
                pass_on(number)
            try:
                result = context.wait(period=LOOK_SECONDS)
            finally:
                context.close()
                for process in processes:
                    with suppress(ProcessLookupError):  # what it started and left holds this process's output open
                        os.killpg(process, signal.SIGTERM)
                    delete_temporary(process)
        assert result is not None
        began = min((failure.timestamp for failure in result.failures.values()), default=0)
        return {
            rank: Failure(
                failure.pid,
                failure.exitcode,
                reason_left(context.error_files[rank]),
                failure.exitcode == -signal.SIGKILL and failure.timestamp >= began + GRACE_SECONDS,
            )
            for rank, failure in result.failures.items()
        }

    with TemporaryDirectory(prefix="unfused-devices-") as folder:
        code = with_restarts(attempt, out, restarts)
    del store
    return code


def with_restarts(attempt: Attempt, out: Path, restarts: int) -> int:
    """The exit code of processes that are started again, up to `restarts` times, when one has died; not after a signal
    to this process, and not where a process ended on an error that the user has to fix. `out` is the run directory.
    """
    launch, came = str(uuid4()), list[int]()
    for number in range(restarts + 1):
        counts = {"TORCHELASTIC_RESTART_COUNT": str(number), RESTARTS_LEFT: str(restarts - number)}
        failures = attempt({LAUNCH: launch, **counts}, came)
        first = next(iter(failures.values()), None)
        others = [failure for failure in failures.values() if failure.code != INTERRUPTED]  # which SIGTERM stopped
        sentences = _sentences(failures)
        if first not in others or came or number == restarts or not all(failure.may_succeed for failure in others):
            break
        died = "; ".join(sentences) or "another process of this run was lost"
        print(f"{died}; restart {number + 1} of {restarts}: {_continued(out, launch)}", file=sys.stderr)
    for sentence in sentences:
        print(f"error: {sentence}", file=sys.stderr)
    return 0 if first is None else max(1, first.code)


def _sentences(failures: Mapping[int, Failure]) -> list[str]:
    """Why processes failed, but for what rank 0 printed itself, and for what followed from the end of another one."""
    first = next(iter(failures), None)
    ended = {
        rank: failure
        for rank, failure in sorted(failures.items())
        if failure.code < 0 and (rank == first or failure.code == -signal.SIGKILL)  # SIGTERM ended the others
    }
    found = [
        f"rank {rank} (process {failure.pid}) "
        + ("did not end and was killed" if failure.hung else f"was ended by {signal.Signals(-failure.code).name}")
        for rank, failure in ended.items()
    ]
    reasons = {failures[0].left if 0 in failures else None}
    for rank, failure in sorted(failures.items()):
        if failure.left and failure.left not in reasons and not (ended and failure.may_succeed):
            reasons.add(failure.left)
            found.append(f"rank {rank}: {escaped(failure.left[0].removeprefix('error: '))}")
    return found


def _continued(out: Path, launch: str) -> str:
    """What processes that are started again continue: the stage that was begun last, and its last save, as text."""
    found = [path for path in (out / "config.json", *out.glob("*/config.json")) if path.is_file()]
    begun = [path for path in found if launch.encode() in path.read_bytes()]
    run = max(begun, key=lambda path: path.stat().st_mtime_ns, default=out / "config.json").parent
    names = sorted(path.stem for path in run.glob("checkpoints/epoch-*.json")) if begun else []
    return f"{run} continues from {names[-1]}" if names else f"{run} begins again, no save was found"


@contextmanager
def signals_to(send: Callable[[int], None]) -> Iterator[None]:
    """Passes on signals that this process gets."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        send(number)

    before = set_handler(pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
