"""`--devices N`: starts N processes of the same command on this machine, passes signals on, and ends with them."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple

from unfused_fast.errors import UserError, escaped
from unfused_fast.launch import place_of
from unfused_fast.shards.packing.workers import available_cores

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torchrun's variable with the file in which a process leaves the reason why it failed."""
SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP


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
            raise UserError(f"--devices {devices}: PyTorch {torch.__version__} sees {found} CUDA devices here")
    return _run(devices)


def leave_reason(text: str) -> None:
    """Leaves why this process fails to what started it: torchrun, or a launcher here."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": text, "timestamp": int(time.time())}), encoding="utf-8")


def reason_left(path: str | Path) -> str:
    """What leave_reason wrote; empty where it did not."""
    return str(json.loads(Path(path).read_text(encoding="utf-8"))["message"]) if Path(path).is_file() else ""


def _run(count: int) -> int:
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
