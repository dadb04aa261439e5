"""`--engine ray`: starts --devices N processes of the same command on a Ray cluster, whose nodes share all files.

Ours: Ray reserves the places and starts the processes, which then find each other as under torchrun. Ray Train would
call a function in a thread of its workers, where no signal can stop a run and save it.
"""

from __future__ import annotations

import codecs
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from unfused_fast.commands.launcher import ERRORS, exit_code, passed_on, read_words, wait_for
from unfused_fast.errors import UserError
from unfused_fast.launch import place_of
from unfused_fast.shards.packing.ray_engine import connect
from unfused_fast.shards.packing.workers import available_cores

STARTED = "UNFUSED_ON_RAY"
"""Variable of a process that was started here: it is to work."""
PASSED = ("UNFUSED_", "NCCL_", "GLOO_", "TORCH_", "OMP_", "COLUMNS")
"""Beginnings of the names of variables that go to the other machines."""
USER_ERROR = 1
"""Exit code of a process whose machine is lost."""
PLACE_SECONDS = 60.0
"""How long to wait for places that others take. Ours: a request for more slots than are free should fail."""


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
        return _run(ray, count, _resources(ray, count, device))
    finally:
        ray.shutdown()


class Member:
    """An actor: one process of the run, on the node where Ray has put it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._rank = 0
        self._folder = Path(tempfile.mkdtemp(prefix="unfused-ray-"))
        self._read: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
        self._readers: list[threading.Thread] = []

    def where(self) -> tuple[str, int]:
        """Address of the node, and a port of it that nobody listens on."""
        from ray.util import get_node_ip_address

        with socket.socket() as taken:
            taken.bind(("", 0))
            return str(get_node_ip_address()), int(taken.getsockname()[1])  # type: ignore[no-untyped-call]

    def start(self, arguments: list[str], folder: str, own: dict[str, str], local_size: int) -> int:
        """Starts the process in `folder`; its number. Only rank 0's output is kept."""
        threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // local_size))}  # Ray sets 1
        env = {**os.environ, **threads, **own, ERRORS: str(self._folder)}
        self._rank = int(own["RANK"])
        output = subprocess.DEVNULL if self._rank else subprocess.PIPE
        command = [sys.executable, "-m", "unfused_fast", *arguments]
        self._process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output)
        for stream, kept in ((self._process.stdout, "out"), (self._process.stderr, "err")):
            if stream is not None:
                self._readers.append(threading.Thread(target=self._keep, args=(stream, self._read[kept]), daemon=True))
                self._readers[-1].start()
        return self._process.pid

    def look(self, signals: list[int]) -> tuple[int | None, bytes, bytes, str]:
        """Sends it signals; its exit code, what it has written since the last look, and its last words."""
        assert self._process is not None
        for number in signals:
            self._process.send_signal(number)
        code, said = self._process.poll(), ""
        if code is not None:
            for reader in self._readers:
                reader.join()
            said = read_words(self._folder, self._rank)
            shutil.rmtree(self._folder, ignore_errors=True)
        found = [bytes(kept) for kept in self._read.values()]
        for kept, taken in zip(self._read.values(), found, strict=True):
            del kept[: len(taken)]
        return code, found[0], found[1], said

    def _keep(self, stream: IO[bytes], kept: bytearray) -> None:
        while data := os.read(stream.fileno(), 1 << 16):
            kept += data


class Remote:
    """A member's process, as one of this machine."""

    def __init__(self, ray: Any, member: Any, rank: int, address: str, pid: int) -> None:
        self.pid, self.said = pid, ""
        self.returncode: int | None = None
        self._ray, self._member, self._rank, self._address = ray, member, rank, address
        self._signals: list[int] = []
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(2)]

    def poll(self) -> int | None:
        """Its exit code, None while it runs; passes signals to it, and what it has written to this process's output."""
        if self.returncode is None:
            signals, self._signals = self._signals, []
            try:
                self.returncode, out, err, self.said = self._ray.get(self._member.look.remote(signals))
            except self._ray.exceptions.RayError as error:
                self.returncode = USER_ERROR
                reason = str(error).strip().splitlines()[0]
                print(f"error: rank {self._rank} on {self._address}: Ray lost it ({reason})", file=sys.stderr)
                return self.returncode
            for data, decoder, stream in ((out, self._decoders[0], sys.stdout), (err, self._decoders[1], sys.stderr)):
                stream.write(decoder.decode(data))
                stream.flush()
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        """With the next poll, as Ray may not be called where a signal comes in between."""
        self._signals.append(number)


def _resources(ray: Any, count: int, device: str) -> dict[str, int]:
    """What each process needs. Raises UserError when the cluster has not as much."""
    found = {name: int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}
    on_gpus = device == "cuda" or (device == "auto" and found["GPU"] > 0)
    needed = {"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
    if any(count > found[name] for name in needed):
        raise UserError(
            f"--devices {count}: the Ray cluster has {found['CPU']} CPUs and {found['GPU']} GPUs; each process takes "
            f"{' and '.join(f'one {name}' for name in needed)}"
        )
    return needed


def _run(ray: Any, count: int, needed: dict[str, int]) -> int:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([needed] * count, strategy="PACK")
    if not group.wait(PLACE_SECONDS):
        raise UserError(
            f"--devices {count}: the Ray cluster had no room for so many within {PLACE_SECONDS:.0f} s; see: ray status"
        )
    actor = ray.remote(num_cpus=1, num_gpus=needed.get("GPU", 0))(Member)
    members = [
        actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
        for index in range(count)
    ]
    try:
        places = ray.get([member.where.remote() for member in members])
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a node cannot begin ({str(error).strip().splitlines()[0]}); with --engine ray all nodes need unfused-fast"
        ) from error
    ranks = sorted(range(count), key=lambda index: (places[index][0] != places[0][0], places[index][0], index))
    address, port = places[ranks[0]]
    hosts = [host for host, _ in places]
    shared = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    shared |= {STARTED: "1", "WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    shared["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
    begun = []
    for rank, index in enumerate(ranks):
        size = hosts.count(hosts[index])
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(size)}  # Ray shows it one GPU
        begun.append(members[index].start.remote(sys.argv[1:], str(Path.cwd()), own, size))
    try:
        pids = ray.get(begun)
    except ray.exceptions.RayTaskError as error:
        raise UserError(
            f"a node cannot start a process ({error.cause}); with --engine ray all nodes need unfused-fast, and the "
            f"folder {Path.cwd()}"
        ) from error
    processes = [
        Remote(ray, members[index], rank, hosts[index], pid)
        for rank, (index, pid) in enumerate(zip(ranks, pids, strict=True))
    ]
    with passed_on(processes, here=False):
        first = wait_for(processes)
    return exit_code(processes, [process.said for process in processes], first)
