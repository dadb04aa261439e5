"""The processes that train one network together, a rank each: what they tell each other.

Two groups: one of the device (NCCL on GPUs, gloo on CPUs) for tensors, one of gloo for words and agreements, so that
these never wait for a GPU. A process that works alone is rank 0 of 1, and every exchange is the identity.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unfused_fast.distributed.beats import Beats
from unfused_fast.distributed.shares import Share
from unfused_fast.errors import UserError
from unfused_fast.launch import TIMEOUT_SECONDS, Place

PARTING_SECONDS = 10.0
"""How long rank 0 stays at the end, where it keeps the store, so that the others can read what was said last."""
POLL_SECONDS = 0.02, 1.0
"""Shortest and longest time from one look for rank 0's word to the next."""


class RankLost(UserError):
    """Another process ended, or does not answer."""


class SaidElsewhere(UserError):
    """What rank 0 could not do; it says so itself."""


class Ranks:
    """The processes of a run, seen from one of them. As a context manager it leaves them when the block ends, and tells
    them why where it ends by an error.
    """

    def __init__(
        self, place: Place | None = None, device: torch.device | None = None, timeout_s: float = TIMEOUT_SECONDS
    ) -> None:
        """Waits for the others. Raises UserError when they do not come.

        Args:
            place: among them; None: this process works alone.
        """
        self.rank, self.world_size = (0, 1) if place is None else (place.rank, place.world_size)
        self.local_rank, self.local_size = (0, 1) if place is None else (place.local_rank, place.local_size)
        self.share = Share(self.rank, self.world_size)
        self.sizes = [0]
        """Rows of the batch at hand on each rank; see batch."""
        self.group: dist.ProcessGroup | None = None
        self._asked, self._met, self._where = 0, 0, "start"
        if place is None:
            return
        self._keeps = self.leads and not place.hosted
        self.device, self._timeout = device or torch.device("cpu"), timeout_s
        limit = timedelta(seconds=timeout_s)
        try:
            self._store = place.store(limit)
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=limit,
                device_id=self.device if backend == "nccl" else None,
            )
            self.group = dist.group.WORLD
            self._gloo = self.group if backend == "gloo" else dist.new_group(backend="gloo", timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rank {self.rank} of {self.world_size}: the processes did not find each other at {place.address}:"
                f"{place.port} ({str(error).splitlines()[0]}); were all of them started, "
                "and can they reach this port? On GPUs: has each a GPU of its own?"
            ) from error
        self._beats = Beats(place.store(limit), self.rank, self.world_size)
        self._beats.start()

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes the run directory and speaks."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether there are others."""
        return self.group is not None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.group is None:
            return
        self._beats.stop(None if error is None or isinstance(error, RankLost) else str(error) or type(error).__name__)
        with suppress(RuntimeError):
            self._store.add("unfused/left", 1)
            until = time.monotonic() + PARTING_SECONDS
            while self._keeps and self._store.add("unfused/left", 0) < self.world_size and time.monotonic() < until:
                time.sleep(POLL_SECONDS[0])
        if error is None:
            dist.destroy_process_group()

    def stand(self, where: str) -> None:
        """Notes where this process stands, for what the others say of it when it hangs."""
        if self.group is not None:
            self._where = self._beats.where = where

    def doing(self, part: str) -> None:
        """Notes what it does there."""
        if self.group is not None:
            self._beats.where = f"{self._where}, {part}"

    def batch(self, clips: int, part: Share | None = None) -> slice:
        """Sets the batch at hand, of so many clips on all ranks, or a part of each rank's share of it. Returns that
        part of this rank's rows.
        """
        whole = self.share.sizes(clips)
        part = part or Share()
        cuts = [part.of(size) for size in whole]
        self.sizes = [cut.stop - cut.start for cut in cuts]
        return cuts[self.rank]

    @property
    def rows(self) -> tuple[int, int]:
        """Of the batch at hand: its rows on all ranks, and how many of them lie on ranks before this one."""
        return sum(self.sizes), sum(self.sizes[: self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place, the same bits on each."""
        if self.group is not None:
            with self.watched():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape -> (ranks, *shape)."""
        if self.group is None:
            return tensor[None]
        every = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        with self.watched():
            dist.all_gather(every, tensor.contiguous(), group=self.group)
        return torch.stack(every)

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """This rank's rows of the batch at hand -> those of all ranks, in the order of the batch."""
        return self.gather_parts(tensor, self.sizes)

    def gather_parts(self, tensor: Tensor, sizes: list[int]) -> Tensor:
        """(n, ...) with n = sizes[rank] -> (sum of sizes, ...)."""
        if self.group is None:
            return tensor
        longest = max(sizes)
        if len(tensor) < longest:
            tensor = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
        every = self.gather(tensor)
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    def from_first(self, tensor: Tensor) -> Tensor:
        """What rank 0 has, in place."""
        if self.group is not None:
            with self.watched():
                dist.broadcast(tensor, 0, group=self.group)
        return tensor

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag whether any rank has it set. Waits for the other processes, never for a GPU."""
        if self.group is None:
            return flags
        every = torch.tensor(flags, dtype=torch.int32)
        with self.watched():
            dist.all_reduce(every, op=dist.ReduceOp.MAX, group=self._gloo)
        return tuple(map(bool, every.tolist()))

    def texts(self, text: str) -> list[str]:
        """The text of each rank."""
        if self.group is None:
            return [text]
        data = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        length = torch.tensor(len(data))
        with self.watched():
            dist.all_reduce(length, op=dist.ReduceOp.MAX, group=self._gloo)
            padded = torch.cat([data, data.new_zeros(int(length) - len(data))])
            every = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(every, padded, group=self._gloo)
        return [bytes(one.tolist()).split(b"\0")[0].decode() for one in every]

    def first(self, work: Callable[[], Any]) -> Any:
        """What rank 0's work gives, as JSON holds it, on every rank. However long it takes: the others look only
        whether rank 0 is alive.

        Raises:
            UserError: rank 0's, there; SaidElsewhere on the others.
        """
        if self.group is None:
            return work()
        self._asked += 1
        key = f"unfused/first/{self._asked}"
        if not self.leads:
            return self._answer(key)
        try:
            value = work()
        except BaseException as error:
            self._store.set(key, json.dumps({"error": str(error) or type(error).__name__}))
            raise
        self._store.set(key, json.dumps({"value": value}))
        return value

    def _answer(self, key: str) -> Any:
        self._wait(lambda: self._store.check([key]), [0])
        answer = json.loads(self._store.get(key))
        if "error" in answer:
            raise SaidElsewhere(answer["error"])
        return answer["value"]

    def meet(self) -> None:
        """Waits for all, however long they take, as long as they are alive."""
        if self.group is None:
            return
        self._met += 1
        key = f"unfused/met/{self._met}"
        self._store.add(key, 1)
        self._wait(lambda: self._store.add(key, 0) >= self.world_size, list(range(self.world_size)))

    def _wait(self, done: Callable[[], bool], ranks: list[int]) -> None:
        pause, longest = POLL_SECONDS
        try:
            while True:
                gone = any(self._gone(rank) for rank in ranks if rank != self.rank)
                if done():  # asked last: who ends has answered before
                    return
                if gone:
                    raise RankLost(self._beats.who_is_missing())
                time.sleep(pause)
                pause = min(2 * pause, longest)
        except RuntimeError as error:
            raise RankLost(self._beats.who_is_missing()) from error

    def _gone(self, rank: int) -> bool:
        return self._beats.silent_for(rank) > self._timeout or self._beats.ended(rank) is not None

    def tensors_from_first(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Tensors on the CPU that rank 0 has, on every rank; the others give None."""
        if self.group is None or (self.leads and tensors is None):
            assert tensors is not None
            return tensors
        heads = self.first(
            lambda: [
                [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                for name, tensor in (tensors or {}).items()
            ]
        )
        found = dict[str, Tensor]()
        for name, kind, shape in heads:
            own = torch.empty(shape, dtype=getattr(torch, kind)) if tensors is None else tensors[name].contiguous()
            with self.watched():
                dist.broadcast(own, 0, group=self._gloo)
            found[name] = own
        return found

    @contextmanager
    def watched(self, kind: type[RuntimeError] = RuntimeError) -> Iterator[None]:
        """Turns an exchange that fails, by an error of this kind, into words about who is missing."""
        try:
            yield
        except kind as error:
            raise RankLost(self._beats.who_is_missing()) from error


def in_words(ranks: Ranks) -> str:
    """What a command says of several."""
    return f" on {ranks.world_size} ranks" if ranks.together else ""


ALONE = Ranks()
"""A process without others."""
