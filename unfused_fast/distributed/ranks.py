"""The processes (ranks) that train one network together, over torch.distributed.

A single process is rank 0 of 1, and every collective operation is the identity.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from unfused_fast.distributed.shares import WHOLE, Share
from unfused_fast.errors import UserError
from unfused_fast.launch import TIMEOUT_SECONDS, Place

Result = TypeVar("Result")

PATIENCE = timedelta(days=30)
"""How long ranks wait for work that one of them does alone, such as the first pass over a set. A rank that ends is
detected at once, because its connections close.
"""
BLOCK_BYTES = 64 * 2**20
"""Most bytes of rows that rank 0 holds while they go from another rank's device to its memory, or the other way. Ours:
a tenth of a per cent of a device's memory, and thousands of rows."""


class RankLost(UserError):
    """Another process ended, or does not answer."""


class FailedOnFirst(UserError):
    """Raised on the other ranks for an error that rank 0 prints."""


class Ranks:
    """The processes of a run, seen from one of them. As a context manager it leaves the group when the block ends."""

    def __init__(
        self, place: Place | None = None, device: torch.device | None = None, timeout_s: float = TIMEOUT_SECONDS
    ) -> None:
        """Connects to the other ranks. Raises UserError when that fails.

        Args:
            place: of this process among them; None: a single process.
            timeout_s: longest wait in a collective operation.
        """
        self.rank, self.world_size = (0, 1) if place is None else (place.rank, place.world_size)
        self.local_rank, self.local_size = (0, 1) if place is None else (place.local_rank, place.local_size)
        self.device = device or torch.device("cpu")
        self.share = Share(self.rank, self.world_size)
        self.sizes = [0]
        """Rows of the current batch on each rank; see batch."""
        self._seconds = 0.0
        self.group: dist.ProcessGroup | None = None
        if place is None:
            return
        on_gpu, limit = self.device.type == "cuda", timedelta(seconds=timeout_s)
        address = f"tcp://{place.address}:{place.port}"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store when it starts all again
        try:
            store, *_ = next(dist.rendezvous(address, self.rank, self.world_size, timeout=limit))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=dist.PrefixStore(f"attempt {attempt}", store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=limit,
                device_id=self.device if on_gpu else None,
            )
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rank {self.rank} of {self.world_size}: the processes could not connect at {place.address}:"
                f"{place.port} ({str(error).splitlines()[0]}); were all of them started, "
                "and can they reach this port? On GPUs: does each have its own GPU?"
            ) from error
        self.group = dist.group.WORLD

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes the run directory and prints."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether there are other ranks."""
        return self.group is not None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.together:
            return
        if error is None:
            self.barrier()
        # gloo's threads end here: one that still frees a tensor while Python ends would abort the process. NCCL stays
        # after an error, since it would wait for operations of ranks that are gone.
        dist.destroy_process_group(self._patient if error is not None and self.device.type == "cuda" else None)
        self.group = None
        del self._patient

    def batch(self, sizes: Sequence[int], part: Share = WHOLE) -> slice:
        """Sets the current batch, of so many rows on each rank, or a part of each rank's. Returns that part of this
        rank's rows.
        """
        cuts = [part.of(size) for size in sizes]
        self.sizes = [cut.stop - cut.start for cut in cuts]
        return cuts[self.rank]

    @property
    def rows(self) -> tuple[int, int]:
        """The current batch's rows on all ranks, and the number of them on lower ranks."""
        return sum(self.sizes), sum(self.sizes[: self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place, the same bits on each."""
        if self.together:
            with self._watched():
                dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.together:
            with self._watched():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(...) of equal shape on each rank -> (ranks, ...)."""
        if not self.together:
            return tensor[None]
        every = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        with self._watched():
            dist.all_gather(every, tensor.contiguous())
        return torch.stack(every)

    def gather_parts(self, tensor: Tensor, sizes: list[int]) -> Tensor:
        """(n, ...) with n = sizes[rank] -> (sum of sizes, ...)."""
        if not self.together:
            return tensor
        padding = tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])
        every = self.gather(torch.cat([tensor, padding]))
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    def rows_to_first(self, own: Tensor, parts: Sequence[slice], out: Tensor | None) -> None:
        """Copies the rows of all ranks to the host of rank 0, block by block; from GPUs without waiting for them.

        Args:
            own: (n, ...) rows of this rank, on its device.
            parts: which of the N rows each rank has, in order of ranks.
            out: (N, ...) in rank 0's memory; None elsewhere.
        """
        for rank, part in enumerate(parts):
            for rows in _blocks(part, own) if self.rank in (0, rank) else ():
                if self.rank:
                    self._send(own[rows.start - part.start : rows.stop - part.start], 0)
                    continue
                assert out is not None
                block = own[rows] if not rank else self._received(torch.empty_like(out[rows], device=own.device), rank)
                out[rows].copy_(block, non_blocking=True)

    def rows_from_first(self, own: Tensor, parts: Sequence[slice], read: Callable[[slice], Tensor] | None) -> None:
        """Gives each rank but the first its part of N rows, however long that takes. `own` and `parts` are those of
        rows_to_first; `read` gives rank 0 a block of the N rows, on the CPU.
        """
        for rank, part in enumerate(parts):
            for rows in _blocks(part, own) if rank and self.rank in (0, rank) else ():
                if self.leads:
                    assert read is not None
                    self._send(read(rows), rank, self._patient)
                else:
                    block = own[rows.start - part.start : rows.stop - part.start]
                    block.copy_(self._received(torch.empty_like(block, device="cpu"), 0, self._patient))

    def _send(self, tensor: Tensor, to: int, group: dist.ProcessGroup | None = None) -> None:
        with self._watched():
            dist.send(tensor.contiguous(), to, group=group)

    def _received(self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> Tensor:
        """The tensor, with the values that a rank sends."""
        with self._watched():
            dist.recv(tensor, source, group=group)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's values, in place."""
        if self.together:
            with self._watched():
                dist.broadcast(tensor, 0)
        return tensor

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has it set. Waits for the other processes, never for a GPU."""
        return tuple(map(bool, self.largest(torch.tensor(flags, dtype=torch.int64)).tolist()))

    def texts(self, text: str) -> list[str]:
        """The text of each rank; waits as long as the other processes are alive."""
        if not self.together:
            return [text]
        data = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        with self._watched():
            length = torch.tensor(len(data))
            dist.all_reduce(length, op=dist.ReduceOp.MAX, group=self._patient)
            padded = torch.cat([data, data.new_zeros(int(length) - len(data))])
            every = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(every, padded, group=self._patient)
        return [one.numpy().tobytes().split(b"\0")[0].decode() for one in every]

    def first(self, work: Callable[[], Any]) -> Any:
        """The result of `work` on rank 0, JSON values, on every rank, however long it takes.

        Raises:
            UserError: the error of `work`, on rank 0; FailedOnFirst on the others.
        """
        if not self.together:
            return work()
        answer, failure = dict[str, Any](), None
        if self.leads:
            try:
                answer["value"] = work()
            except Exception as error:
                failure, answer["error"] = error, str(error) or type(error).__name__
        answer = json.loads(self.texts(json.dumps(answer))[0])
        if "error" in answer:
            raise failure or FailedOnFirst(answer["error"])
        return answer["value"]

    def every(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, which each rank does, however long it takes.

        Raises:
            UserError: on every rank, where one of them raised it: all that was raised, on rank 0; FailedOnFirst on the
                others.
        """
        if not self.together:
            return work()
        result, failure = cast(Result, None), None
        try:
            result = work()
        except UserError as error:
            failure = error
        if said := dict.fromkeys(text for text in self.texts("" if failure is None else str(failure)) if text):
            kind = UserError if self.leads else FailedOnFirst
            raise kind("; ".join(said)) from failure
        return result

    def barrier(self) -> None:
        """Waits for all ranks, however long they take, as long as their processes are alive."""
        self.texts("")

    def tensors_from_first(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's tensors, on the CPU of every rank; the others pass None."""
        own = tensors or {}
        heads = self.first(
            lambda: [[name, str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in own.items()]
        )
        return {
            name: self.from_first(
                own[name].contiguous() if name in own else torch.empty(shape, dtype=getattr(torch, kind))
            )
            for name, kind, shape in heads
        }

    def seconds(self) -> dict[str, float]:
        """`collectives`: the seconds that this rank spent in collective operations since the last call, waiting for
        slower ranks included; nothing for a single process.

        They are those of the host. An operation on a CUDA tensor only queues work there, so its time on the device,
        where other work may overlap with it, is not in them: a trace (--profile) has it.
        """
        seconds, self._seconds = self._seconds, 0.0
        return {"collectives": round(seconds, 4)} if self.together else {}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Adds up the time of a collective operation, and turns the error of a failed one into RankLost; but not this
        device's lack of memory for what is gathered.
        """
        start = time.perf_counter()
        try:
            yield
            self._seconds += time.perf_counter() - start
        except torch.OutOfMemoryError:  # a RuntimeError too
            raise
        except RuntimeError as error:
            # of gloo's message the cause, without where in gloo it was found and advice for its developers
            reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
            raise RankLost(f"another process of this run ended or does not answer ({reason})") from error


def _blocks(part: slice, rows: Tensor) -> Iterator[slice]:
    """A part of N rows, of the size of those of `rows`, in blocks of at most BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (rows.shape[1:].numel() * rows.element_size()))
    return (slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size))


def in_words(ranks: Ranks) -> str:
    """The number of ranks, for messages; empty for one."""
    return f" on {ranks.world_size} ranks" if ranks.together else ""


ALONE = Ranks()
"""A single process."""
