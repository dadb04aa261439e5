"""The memory bank: a device tensor of record, persisted to zarr generations while training goes on.

N clips of the split, D size of a projection, B clips in a batch. Row i belongs to clip first_id + i, where the ids of a
split are contiguous in the clips table. Files: bank_manifest.py; writing them: bank_write.py; reading: bank_read.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unfused_fast.clustering.background import Background
from unfused_fast.clustering.bank_manifest import BankType, DamagedBank, generation_name, layout
from unfused_fast.clustering.bank_read import DTYPES, Generation
from unfused_fast.clustering.bank_write import create_generation, prune, publish, write_part
from unfused_fast.errors import UserError

GENERATIONS_KEPT = 2
"""As many as checkpoints, so that each checkpoint has its generation."""


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
            then: called in the thread when the generation is published and proved, before older ones are deleted: what
                refers to it (a checkpoint) is published here, so that nothing ever refers to rows that are not there.

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
            return self._write(directory, epoch, step, then)

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
            DamagedBank: it is missing, damaged, or of other clips, another width or another type.
        """
        generation = Generation(directory / generation_name(epoch))
        manifest, wanted = generation.manifest, tuple(self.rows.shape)
        if (manifest.rows, manifest.dim) != wanted or manifest.first_clip_id != self.first_id:
            raise DamagedBank(
                f"{generation.path}: a memory bank of {(manifest.rows, manifest.dim)} from clip "
                f"{manifest.first_clip_id} on, but this run needs {wanted} from clip {self.first_id} on; is it of "
                "another shard set?"
            )
        if manifest.dtype != self.dtype or manifest.epoch != epoch:
            raise DamagedBank(
                f"{generation.path}: a memory bank of epoch {manifest.epoch} in {manifest.dtype}, but this run needs "
                f"epoch {epoch} in {self.dtype}"
            )
        assignments = torch.empty(manifest.rows, dtype=torch.int64)
        for block in generation.chunks():
            rows = slice(block.first_row, block.first_row + len(block.rows))
            self.rows[rows].copy_(block.rows)
            assignments[rows] = block.assignments
        return assignments.to(self.rows.device)

    def _host_buffers(self) -> tuple[Tensor, Tensor]:
        if self._host is None:
            pinned = self.rows.is_cuda
            self._host = (
                torch.empty(self.rows.shape, dtype=self.rows.dtype, pin_memory=pinned),
                torch.empty(len(self.rows), dtype=torch.int64, pin_memory=pinned),
            )
        return self._host

    def _write(self, directory: Path, epoch: int, step: int, then: Callable[[], object] | None) -> Path:
        rows, ids = self._host_buffers()
        cut = layout(len(rows), rows.shape[1], self.dtype)
        # numpy knows no bfloat16: its bits are stored, so that nothing is rounded
        bits = rows.view(torch.int16).numpy().view(np.uint16) if self.dtype == "bfloat16" else rows.numpy()
        partial = create_generation(directory, epoch, cut)
        write_part(partial, cut, 0, bits, ids.numpy())
        final = publish(partial, cut, epoch=epoch, step=step, first_clip_id=self.first_id)
        if then is not None:
            then()
        prune(directory, GENERATIONS_KEPT)
        return final
