"""The memory bank: a tensor on the device, saved as zarr generations while training continues.

N clips of the split, D size of a projection, B clips in a batch. Row i belongs to clip first_id + i, where the ids of a
split are contiguous in the clips table. Files: bank_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

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
from unfused_fast.strict_state import expected


class MemoryBank:
    """The latest projection of every clip, and how often each row was written this epoch."""

    def __init__(
        self, clips: int, dim: int, first_id: int, device: torch.device, dtype: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.dtype: BankType = "float32" if dtype == "fp32" else "bfloat16"
        self.rows = torch.zeros(clips, dim, device=device, dtype=DTYPES[self.dtype])
        self.writes = torch.zeros(clips, dtype=torch.int32, device=device)
        self.first_id = first_id
        self._host: tuple[Tensor, Tensor] | None = None

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

    def snapshot(
        self,
        directory: Path,
        epoch: int,
        assignments: Tensor,
        *,
        step: int = 0,
        then: Callable[[], object] | None = None,
    ) -> Callable[[], Path]:
        """Copies the rows once; returns a function that writes them as generation `gen-<epoch>`, to be run in a thread
        during training.

        It must have finished before the next snapshot, which uses the same memory. Ours: on a GPU the copy goes to
        pinned memory without waiting for it, and the writer waits for its event. Zarr's own GPU buffers would need
        CuPy, and copy through pageable memory in the training thread.

        Args:
            directory: of the generations.
            assignments: (N,) int64, on any device.
            step: optimiser steps done, for the manifest.
            then: called by the writer when the generation is complete, before older ones are deleted: a checkpoint that
                refers to it is written here, so that no checkpoint refers to missing rows.
        """
        if self._host is None:
            pinned = self.rows.is_cuda
            self._host = (
                torch.empty(self.rows.shape, dtype=self.rows.dtype, pin_memory=pinned),
                torch.empty(len(self.rows), dtype=torch.int64, pin_memory=pinned),
            )
        rows, ids = self._host
        rows.copy_(self.rows, non_blocking=True)
        ids.copy_(assignments, non_blocking=True)
        copied = torch.cuda.current_stream(self.rows.device).record_event() if self.rows.is_cuda else None

        def write() -> Path:
            if copied is not None:
                copied.synchronize()
            return write_generation(
                directory, rows, ids, epoch=epoch, step=step, first_clip_id=self.first_id, then=then
            )

        return write

    def tensors(self, assignments: Tensor) -> dict[str, Tensor]:
        """What a checkpoint within an epoch needs, while the bank holds rows of this epoch and of the one before."""
        return {"bank.rows": self.rows, "bank.writes": self.writes, "bank.assignments": assignments}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Inverse of tensors; returns the assignments (N,). Raises UserError: one is missing, or of another bank."""
        clips = len(self.rows)
        rows = expected(tensors, "bank.rows", self.rows.dtype, tuple(self.rows.shape))
        writes = expected(tensors, "bank.writes", torch.int32, (clips,))
        assignments = expected(tensors, "bank.assignments", torch.int64, (clips,))
        self.rows.copy_(rows)
        self.writes.copy_(writes)
        return assignments.to(self.rows.device)

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
                f"{generation.path}: a memory bank of {found}, but this run needs {wanted}; "
                "was the run trained on another shard set?"
            )
        for start, block in generation.blocks():
            self.rows[start : start + len(block)].copy_(block)
        return generation.assignments().to(self.rows.device)
