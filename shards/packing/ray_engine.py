"""The work of a pack on a Ray cluster, whose nodes share the storage of SOURCE and OUT.

A task is a shard, as on one machine, so the bytes are the same. A node that dies costs the shards that it was making:
Ray gives them to another one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unfused_fast.errors import UserError
from unfused_fast.optional import importing
from unfused_fast.shards.packing.workers import Answer, Job, Workers

LOOK_EVERY_SECONDS = 0.5
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
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); start one with: ray start --head, "
            "or name one in RAY_ADDRESS"
        ) from error
    return ray


class RayWorkers:
    """All cores of a running Ray cluster, as a Pool."""

    def __init__(self, shared: Sequence[Path]) -> None:
        """Connects as connect().

        Args:
            shared: files and folders that every node must see.

        Raises:
            UserError: no Ray here, no cluster there, or a node that does not see the files.
        """
        self._ray: Any = connect()
        self._answer: Any = self._ray.remote(num_cpus=1, max_retries=TRIES, scheduling_strategy="SPREAD")(_answer)
        self._check(shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def answers(
        self, jobs: Iterable[Job[Answer]], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Job[Answer], Answer]]:
        """As Workers.answers(); `progress` is told of nothing, because nobody looks into a task on its way."""
        waiting = iter(jobs)
        out: dict[Any, Job[Answer]] = {}
        while True:
            cores = int(self._ray.cluster_resources().get("CPU", 1))
            while len(out) < TASKS_PER_CORE * max(1, cores) and (job := next(waiting, None)) is not None:
                out[self._answer.remote(job)] = job
            if not out:
                return
            ready, _ = self._ray.wait(list(out), num_returns=1, timeout=LOOK_EVERY_SECONDS)
            for reference in ready:
                yield out.pop(reference), self._get(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"Ray could not finish a shard in {TRIES} tries ({str(error).splitlines()[0]}); check the nodes "
                "and give the same command again, it goes on where it was"
            ) from error

    def _check(self, shared: Sequence[Path]) -> None:
        """Raises UserError unless every node sees all of `shared`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        looked = []
        for node in self._ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                missing = self._ray.remote(num_cpus=0, scheduling_strategy=there)(_missing)
                looked.append(missing.remote([path.resolve() for path in shared]))
        for host, missing in self._ray.get(looked):
            if missing:
                raise UserError(
                    f"node {host} does not see {', '.join(map(str, missing))}; "
                    "with --engine ray SOURCE and OUT must be on storage that all nodes share"
                )


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT or ray://HOST:PORT; Ray itself goes on asking for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


@cache
def _own_process() -> Workers:
    """A worker process of the Ray worker's own, so that a crash of a decoder costs one file there too."""
    return Workers(1)


def _answer(job: Job[Answer]) -> Answer:
    return next(answer for _, answer in _own_process().answers([job]))


def _missing(paths: Sequence[Path]) -> tuple[str, list[Path]]:
    return socket.gethostname(), [path for path in paths if not path.exists()]
