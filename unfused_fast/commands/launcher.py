"""`--devices N`: starts N processes of the same command on this machine, passes signals on, and ends with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Protocol

from unfused_fast.errors import UserError, escaped
from unfused_fast.launch import place_of
from unfused_fast.shards.packing.workers import available_cores

GRACE_SECONDS = 20.0
"""How long the others may take to end by themselves when one has ended; they say what they know by then."""
POLL_SECONDS = 0.1
ERRORS = "UNFUSED_ERRORS"
"""Variable with the folder in which each process leaves its last words, so that the same are shown once."""


class Process(Protocol):
    """What is asked of a process that was started: subprocess.Popen's, or another machine's."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """As poll() found it; of a process that a signal ended, minus its number."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Sends it a signal, soon."""


def start_devices(devices: int | None, device: str) -> int | None:
    """Exit code of the N processes that were started; None where this process is to do the work itself.

    Raises:
        UserError: more GPUs than there are, or another number of processes than this one was started among.
    """
    place = place_of(os.environ)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a process that ends is told in fifty lines of C++
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


def last_words(text: str) -> None:
    """Leaves signals to the process that started this one."""
    if ERRORS in os.environ:
        (Path(os.environ[ERRORS]) / os.environ.get("RANK", "0")).write_text(text, encoding="utf-8")


def _run(count: int) -> int:
    from torch.distributed import TCPStore

    with socket.create_server(("127.0.0.1", 0), backlog=count) as listening:  # the store alone would listen everywhere
        port = listening.getsockname()[1]
        kept = TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listening.detach(),
        )
    shared = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // count))),
    }
    command = [sys.executable, "-m", "unfused_fast", *sys.argv[1:]]
    with TemporaryDirectory(prefix="unfused-devices-") as folder:
        processes = list[subprocess.Popen[bytes]]()
        with passed_on(processes):
            for rank in range(count):
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), ERRORS: folder}
                hushed = None if rank == 0 or "--debug" in sys.argv else subprocess.DEVNULL
                processes.append(subprocess.Popen(command, env=own, stdout=hushed, stderr=hushed))
            first = wait_for(processes)
        del kept
        said = [read_words(Path(folder), rank) for rank in range(count)]
    return exit_code(processes, said, first)


def exit_code(processes: Sequence[Process], said: list[str], first: int | None) -> int:
    """What all have ended with; repeats on standard error what others than rank 0 had to say, and only they.

    Args:
        said: the last words of each; rank 0's are on the screen.
        first: which one failed first; None: no one did.
    """
    for rank in range(1, len(processes)):
        if said[rank] and said[rank] != said[0]:
            print(f"rank {rank}: {escaped(said[rank])}", file=sys.stderr)
    for rank, process in enumerate(processes):
        code = process.returncode or 0
        if code < 0 and (rank == first or code == -signal.SIGKILL):  # SIGTERM is what the others are ended by
            name = signal.Signals(-code).name
            print(f"error: rank {rank} (process {process.pid}) was ended by {name}", file=sys.stderr)
    code = 0 if first is None else processes[first].returncode or 0
    return code if code >= 0 else 1


def read_words(folder: Path, rank: int) -> str:
    """What a process left by last_words."""
    path = folder / str(rank)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def wait_for(processes: Sequence[Process]) -> int | None:
    """Until all have ended; which one failed first. When one has, the others get GRACE_SECONDS, then SIGTERM, and as
    long again, then SIGKILL.
    """
    failed, deadline, harder = None, 0.0, [signal.SIGTERM, signal.SIGKILL]
    while None in [process.poll() for process in processes]:
        time.sleep(POLL_SECONDS)
        if failed is None:
            failed = next((rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)), None)
            deadline = time.monotonic() + GRACE_SECONDS
        elif time.monotonic() > deadline and harder:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(harder[0])
            del harder[0]
            deadline = time.monotonic() + GRACE_SECONDS
    if failed is None:
        failed = next((rank for rank, process in enumerate(processes) if process.returncode), None)
    return failed


@contextmanager
def passed_on(processes: Sequence[Process], here: bool = True) -> Iterator[None]:
    """Passes on signals that this process gets; but Ctrl-C reaches processes that are `here` from the terminal."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.returncode is None:
                process.send_signal(number)

    def ignored(number: int, frame: FrameType | None) -> None:
        """They got it too."""

    handlers = {signal.SIGTERM: pass_on, signal.SIGUSR1: pass_on, signal.SIGINT: ignored}
    if not here or not sys.stdin or not os.isatty(0):
        handlers[signal.SIGINT] = pass_on
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
