"""Where the points of a clustering lie: in one tensor, in blocks read on demand, over the ranks of a group.

n rows on this rank, N on all, D features. Rank r holds the rows after those of ranks 0..r-1, any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

STREAM_BYTES = 64 * 2**20
"""Rows that are not a tensor are read this many bytes at a time. Ours: long enough for a disk, short beside a bank."""
NEAR_BYTES = 16 * 2**20
"""Rows not farther apart are read in one go. Ours: a chunk of the bank on disk, which any row of it costs whole."""


class ExchangeFailed(RuntimeError):
    """A rank of the group is gone, or does not answer."""


class Rows(Protocol):
    """Rows that need not fit in the device's memory; float32 or bfloat16."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the blocks."""

    def block(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) rows on the device that computes; the caller does not write to them."""


class Points:
    """Rows of this rank, a tensor or `Rows`, and what the ranks of a group tell each other.

    Without a group every exchange is the identity. Raises ValueError for a wrong shape or dtype.
    """

    def __init__(self, rows: Tensor | Rows, group: dist.ProcessGroup | None) -> None:
        if len(rows.shape) != 2 or rows.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"points are {tuple(rows.shape)} {rows.dtype}; want (N, D) of float32 or bfloat16")
        self.rows, self.group, self.dtype = rows, group, rows.dtype
        self.count, self.features = rows.shape
        self.device = rows.device if isinstance(rows, Tensor) else rows.block(0, 0).device
        counts = self.gather(torch.tensor([self.count], device=self.device))[:, 0].tolist()
        self.total: int = sum(counts)
        self.first: int = sum(counts[: dist.get_rank(group) if group is not None else 0])

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Every row once: a tensor in one piece and in place, others in blocks of STREAM_BYTES."""
        if isinstance(self.rows, Tensor):
            yield slice(0, self.count), self.rows
            return
        step = max(1, STREAM_BYTES // (self.features * self.dtype.itemsize))
        for start in range(0, self.count, step):
            stop = min(start + step, self.count)
            yield slice(start, stop), self.rows.block(start, stop)

    def ids(self) -> Tensor:
        """(n,) int64 numbers of this rank's rows among all."""
        return torch.arange(self.first, self.first + self.count, device=self.device)

    def take(self, ids: Tensor) -> Tensor:
        """(m,) local row numbers -> (m, D) float32. `Rows` are read in order; rows close to each other in one block."""
        if isinstance(self.rows, Tensor):
            return self.rows[ids].float()
        found = torch.empty(len(ids), self.features, device=self.device)
        ordered, order = torch.sort(ids)
        numbers, row_bytes, start = ordered.tolist(), self.features * self.dtype.itemsize, 0
        for end in range(1, len(numbers) + 1):
            if end < len(numbers):
                gap, span = numbers[end] - numbers[end - 1], numbers[end] + 1 - numbers[start]
                if gap * row_bytes <= NEAR_BYTES and span * row_bytes <= STREAM_BYTES:
                    continue
            first = numbers[start]
            rows = self.rows.block(first, numbers[end - 1] + 1)
            found[order[start:end]] = rows[ordered[start:end] - first].float()
            start = end
        return found

    def fetch(self, ids: Tensor) -> Tensor:
        """(m,) numbers among all rows, the same on every rank -> (m, D) float32 on every rank."""
        out = torch.zeros(len(ids), self.features, device=self.device)
        mine = torch.nonzero((ids >= self.first) & (ids < self.first + self.count))[:, 0]
        out[mine] = self.take(ids[mine] - self.first)
        return self.sum(out)  # every row comes from one rank, the others add zero

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.group is not None:
            with _exchange():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.group is not None:
            with _exchange():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape -> (ranks, *shape), the same on every rank."""
        if self.group is None:
            return tensor[None]
        every = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self.group))]
        with _exchange():
            dist.all_gather(every, tensor.contiguous(), group=self.group)
        return torch.stack(every)

    def from_first(self, tensor: Tensor) -> Tensor:
        """What rank 0 of the group has, in place: ranks whose arithmetic differs in a bit cannot drift apart."""
        if self.group is not None:
            with _exchange():
                dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExchangeFailed(str(error)) from error
