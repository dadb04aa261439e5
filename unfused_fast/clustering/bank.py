"""The memory bank: a device tensor of record, persisted to zarr generations while training goes on.

N clips of the split, D size of a projection, B clips in a batch. Row i belongs to clip first_id + i, where the ids of a
split are contiguous in the clips table. Files: bank_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from unfused_fast.clustering.bank_files import (
    DTYPES,
    BankType,
    DamagedBank,
    Generation,
    generation_name,
    write_generation,
)
from unfused_fast.errors import UserError

Result = TypeVar("Result")
GENERATIONS_KEPT = 2
"""As many as checkpoints, so that each checkpoint has its generation."""


class Background(Generic[Result]):
    """Work in a thread of its own while the caller continues, one piece at a time."""

    def __init__(self, name: str) -> None:
        """`name` is that of the threads."""
        self._name = name
        self._future: Future[Result] | None = None

    def start(self, work: Callable[[], Result]) -> None:
        """Begins the work, once the work before it is done; raises what that raised."""
        self.wait()
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._future = future
        # a daemon: a second Ctrl-C ends at once, and a write that is cut off leaves the files before it
        Thread(target=run, name=self._name, daemon=True).start()

    def wait(self) -> Result | None:
        """Waits for the last work: its result, or None before the first. Raises what it raised, once."""
        future, self._future = self._future, None
        return None if future is None else future.result()


class MemoryBank:
    """Projections of the last view seen of every clip, and how often each row was written this epoch.

    As a context manager it waits for what is being written when the block ends.
    """

    def __init__(
        self, clips: int, dim: int, first_id: int, device: torch.device, dtype: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.dtype: BankType = "float32" if dtype == "fp32" else "bfloat16"
        self.rows = torch.zeros(clips, dim, device=device, dtype=DTYPES[self.dtype])
        self.writes = torch.zeros(clips, dtype=torch.int32, device=device)
        self.first_id = first_id
        self._host: tuple[Tensor, Tensor] | None = None
        self._saving = Background[Path]("memory bank")

    def __enter__(self) -> MemoryBank:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):  # who presses Ctrl-C twice does not want to wait
            self.wait()

    def start_epoch(self) -> None:
        """Resets the write counts."""
        self.writes.zero_()

    def write(self, clip_ids: Tensor, projections: Tensor) -> None:
        """(B,) ids, (B, D) -> the rows of those clips; no host sync. Source: paper section 3 (embeddings of every
        iteration).
        """
        index = clip_ids - self.first_id
        self.rows[index] = projections.detach().to(self.rows.dtype)
        self.writes.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))

    def check_cover(self) -> None:
        """Raises RuntimeError, naming clips, unless every row was written exactly once since start_epoch."""
        wrong = torch.nonzero(self.writes != 1).flatten()
        if len(wrong):
            named = ", ".join(f"{int(row) + self.first_id} ({int(self.writes[row])} times)" for row in wrong[:5])
            raise RuntimeError(
                f"memory bank: {len(wrong)} of {len(self.writes)} clips were not written exactly once this epoch: "
                f"{named}"
            )

    def save(
        self,
        directory: Path,
        epoch: int,
        assignments: Tensor,
        *,
        step: int = 0,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Copies the rows once, and writes generation `gen-<epoch>` of them in a thread while the caller goes on.

        Ours: on a GPU the copy goes to pinned memory without waiting for it, and the thread waits for its event. Zarr's
        own GPU buffers would need CuPy, and copy through pageable memory on the thread that trains.

        Args:
            directory: of the generations.
            assignments: (N,) int64, on any device.
            step: optimiser steps done, for the manifest.
            then: called in the thread when the generation is complete, before older ones are deleted: what refers to it
                (a checkpoint) is written here, so that nothing ever refers to rows that are not there.

        Raises:
            UserError: the save before this one failed; see wait.
        """
        self.wait()
        rows, ids = self._host_buffers()
        rows.copy_(self.rows, non_blocking=True)
        ids.copy_(assignments, non_blocking=True)
        copied = torch.cuda.current_stream(self.rows.device).record_event() if self.rows.is_cuda else None

        def write() -> Path:
            if copied is not None:
                copied.synchronize()
            return write_generation(
                directory,
                rows,
                ids,
                epoch=epoch,
                step=step,
                first_clip_id=self.first_id,
                keep=GENERATIONS_KEPT,
                then=then,
            )

        self._saving.start(write)

    def wait(self) -> Path | None:
        """Waits for the last save; its generation, or None before the first.

        Raises:
            UserError: it could not be written; the generation before it is intact. Raised once.
        """
        return self._saving.wait()

    def tensors(self, assignments: Tensor) -> dict[str, Tensor]:
        """What a checkpoint within an epoch needs, when rows of this epoch and of the one before lie side by side."""
        return {"bank.rows": self.rows, "bank.writes": self.writes, "bank.assignments": assignments}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Inverse of tensors; returns the assignments (N,). Raises UserError for those of another bank."""
        rows = tensors["bank.rows"]
        if rows.shape != self.rows.shape or rows.dtype != self.rows.dtype:
            raise UserError(
                f"the checkpoint holds a memory bank of {tuple(rows.shape)} in {rows.dtype}, but this run needs "
                f"{tuple(self.rows.shape)} in {self.rows.dtype}; use the set and config of the run that wrote it"
            )
        self.rows.copy_(rows)
        self.writes.copy_(tensors["bank.writes"])
        return tensors["bank.assignments"].to(self.rows.device)

    def load(self, directory: Path, epoch: int) -> Tensor:
        """Reads generation `gen-<epoch>` into the rows, every chunk verified; returns its assignments (N,) int64.

        Raises:
            DamagedBank: it is missing, damaged, or of other clips, another width, type or epoch.
        """
        generation = Generation(directory / generation_name(epoch))
        has = generation.manifest
        found = f"epoch {has.epoch}, {has.rows} x {has.dim} {has.dtype} from clip {has.first_clip_id} on"
        rows, dim = self.rows.shape
        wanted = f"epoch {epoch}, {rows} x {dim} {self.dtype} from clip {self.first_id} on"
        if found != wanted:
            raise DamagedBank(
                f"{generation.path}: a memory bank of {found}, but this run needs {wanted}; is it of another shard set?"
            )
        for block in generation.blocks():
            self.rows[block.first_row : block.first_row + len(block.rows)].copy_(block.rows)
        return generation.assignments().to(self.rows.device)

    def _host_buffers(self) -> tuple[Tensor, Tensor]:
        if self._host is None:
            pinned = self.rows.is_cuda
            self._host = (
                torch.empty(self.rows.shape, dtype=self.rows.dtype, pin_memory=pinned),
                torch.empty(len(self.rows), dtype=torch.int64, pin_memory=pinned),
            )
        return self._host
