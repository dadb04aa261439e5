"""The work of a pack on a Ray cluster, whose nodes share the storage of SOURCE and OUT.

A task is a shard, as on one machine, so the bytes are the same. If a node dies, Ray gives the shards that it was
making to another one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.optional import importing
from unfused_fast.shards.packing.workers import Answer, Job, Workers

POLL_SECONDS = 0.5
TASKS_PER_CORE = 2
"""Tasks handed out at a time. Ours: a core that is done has the next one waiting."""
TRIES = 10
"""How often a task is given to another node, when its node dies."""


def connect() -> Any:
    """The module ray, connected to the cluster at RAY_ADDRESS, or to the one that runs on this machine.

    Raises:
        UserError: Ray is not installed or does not load, or no cluster there.
    """
    with importing("ray", "Ray", "--engine ray", "pip install '.[ray]'"):
        import ray
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); start one with: ray start --head, "
            "or name one in RAY_ADDRESS"
        ) from error
    return ray


class RayWorkers:
    """All cores of a running Ray cluster, as a Pool. Ends the connection with `close()`."""

    def __init__(self, shared: Sequence[Path]) -> None:
        """Connects as connect().

        Args:
            shared: files and folders that every node must be able to read.

        Raises:
            UserError: no Ray here, no cluster there, or a node without access to the files.
        """
        self._ray: Any = connect()
        self.close: Callable[[], None] = self._ray.shutdown
        self._answer: Any = self._ray.remote(num_cpus=1, max_retries=TRIES, scheduling_strategy="SPREAD")(_answer)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in [node for node in self._ray.nodes() if node["Alive"]]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = self._ray.remote(num_cpus=0, scheduling_strategy=there)(_missing)
            if missing := self._ray.get(look.remote([path.resolve() for path in shared])):
                raise UserError(
                    f"node {node['NodeManagerHostname']} cannot access {', '.join(map(str, missing))}; "
                    "with --engine ray SOURCE and OUT must be on storage that all nodes share"
                )

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """As Workers.answers(), but `progress` is not called: what a task has done is known only when it is done."""
        waiting = iter(jobs)
        running: dict[Any, Job[Answer]] = {}
        while True:
            cores = int(self._ray.cluster_resources().get("CPU", 1))
            while len(running) < TASKS_PER_CORE * max(1, cores) and (job := next(waiting, None)) is not None:
                running[self._answer.remote(job)] = job
            if not running:
                return
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                try:
                    answer = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except self._ray.exceptions.RayError as error:
                    raise UserError(
                        f"Ray could not finish a shard in {TRIES} tries ({str(error).splitlines()[0]}); check the "
                        "nodes and run the same command again to continue"
                    ) from error
                yield running.pop(reference), answer


def _check_reachable(address: str) -> None:
    """Raises OSError where no server listens at HOST:PORT or ray://HOST:PORT; Ray itself retries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


@cache
def _own_process() -> Workers:
    """A child process of the Ray worker, so that a crash of a decoder loses one file there too."""
    return Workers(1)


def _answer(job: Job[Answer]) -> Answer:
    return next(answer for _, answer in _own_process().answers([job]))


def _missing(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if not path.exists()]
