"""The memory bank: a tensor on the device, saved as zarr generations while training continues.

N clips of the split, n of them on this rank, D size of a projection, B clips in a batch. Row i of the split belongs to
clip first_id + i, where the ids of a split are contiguous in the clips table. Files: bank_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from unfused_fast.clustering.seeding import Points
from unfused_fast.data import stand_ins
from unfused_fast.distributed import ALONE, Ranks, Share
from unfused_fast.strict_state import expected

NAMED = 5
"""Clips that a rank names in an error."""


class MemoryBank:
    """The latest projection of every clip, and how often each row was written this epoch. Of several ranks each holds
    the rows of its own clips, `Share.of` the split.
    """

    def __init__(
        self,
        clips: int,
        dim: int,
        first_id: int,
        device: torch.device,
        dtype: Literal["fp32", "bf16"] = "fp32",
        ranks: Ranks = ALONE,
        left_out: Sequence[int] = (),
    ) -> None:
        """`left_out` are ids of clips that no batch has; see fill_left_out."""
        self.dtype: BankType = "float32" if dtype == "fp32" else "bfloat16"
        self.clips, self.first_id, self._ranks, self._left_out = clips, first_id, ranks, left_out
        self.parts = [Share(rank, ranks.world_size).of(clips) for rank in range(ranks.world_size)]
        """Rows of the split on each rank."""
        self.own = self.parts[ranks.rank]
        """Those on this one."""
        own = self.own.stop - self.own.start
        self.rows = torch.zeros(own, dim, device=device, dtype=DTYPES[self.dtype])
        """(n, D)"""
        self.writes = torch.zeros(own, dtype=torch.int32, device=device)
        """(n,)"""
        self._host = dict[str, Tensor]()
        """On rank 0, the copies of all rows that are being saved."""

    def start_epoch(self) -> None:
        """Resets the write counts."""
        self.writes.zero_()

    def write(self, clip_ids: Tensor, projections: Tensor) -> None:
        """(B,) ids of this rank's clips, (B, D) -> the rows of those clips; no host sync. Source: paper section 3
        (embeddings of every iteration).
        """
        index = clip_ids - (self.first_id + self.own.start)
        self.writes.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))  # refuses another rank's clips
        self.rows[index] = projections.detach().to(self.rows.dtype)

    def fill_left_out(self) -> None:
        """Gives each clip that is left out the row of its stand-in (data.stand_ins), of whichever rank."""
        if not self._left_out:
            return
        lost, copied = (part.to(self.rows.device) for part in stand_ins(self.clips, self._left_out, self.first_id))
        mine = (lost >= self.own.start) & (lost < self.own.stop)
        rows = Points(self.rows, self._ranks).fetch(copied)[mine]
        self.rows[lost[mine] - self.own.start] = rows.to(self.rows.dtype)
        self.writes[lost[mine] - self.own.start] = 1

    def check_cover(self) -> None:
        """Raises RuntimeError on every rank, naming clips, unless every row was written exactly once since
        start_epoch.
        """
        wrong = torch.nonzero(self.writes != 1).flatten()
        total = int(self._ranks.sum(torch.tensor(len(wrong))))
        if total:
            first = self.first_id + self.own.start
            named = ", ".join(f"{first + int(row)} ({int(self.writes[row])} times)" for row in wrong[:NAMED])
            raise RuntimeError(
                f"memory bank: {total} of {self.clips} clips were not written exactly once this epoch: "
                f"{', '.join(filter(None, self._ranks.texts(named)))}"
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
        """Copies the rows of all ranks once, to the memory of rank 0's host; returns a function that writes them as
        generation `gen-<epoch>`, to be run on rank 0, in a thread during training.

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
        copied = self._copied({"bank.rows": self.rows}, assignments)

        def write() -> Path:
            found = copied()
            return write_generation(
                directory,
                found["bank.rows"],
                found["bank.assignments"],
                epoch=epoch,
                step=step,
                first_clip_id=self.first_id,
                then=then,
            )

        return write

    def tensors(self, assignments: Tensor) -> Callable[[], dict[str, Tensor]]:
        """What a checkpoint within an epoch needs, while the bank holds rows of this epoch and of the one before:
        copies the rows as snapshot does; returns a function that waits for the copies and gives them, to be run on
        rank 0.
        """
        return self._copied({"bank.rows": self.rows, "bank.writes": self.writes}, assignments)

    def _copied(self, own: Mapping[str, Tensor], assignments: Tensor) -> Callable[[], dict[str, Tensor]]:
        """Rows of all ranks, by name, and the assignments, on the host of rank 0."""
        every = {**own, "bank.assignments": assignments}
        for name, rows in every.items() if self._ranks.leads else ():
            if name not in self._host:
                shape = self.clips, *rows.shape[1:]
                self._host[name] = torch.empty(shape, dtype=rows.dtype, pin_memory=self.rows.is_cuda)
        for name, rows in own.items():
            self._ranks.rows_to_first(rows, self.parts, self._host.get(name))
        if self._ranks.leads:
            self._host["bank.assignments"].copy_(assignments, non_blocking=True)
        event = torch.cuda.current_stream(self.rows.device).record_event() if self.rows.is_cuda else None

        def copied() -> dict[str, Tensor]:
            if event is not None:
                event.synchronize()
            return {name: self._host[name] for name in every}

        return copied

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of tensors: `tensors` of rank 0. Raises UserError: one is missing, or of another bank."""
        own = {"bank.rows": self.rows, "bank.writes": self.writes}

        def check() -> None:
            for name, rows in own.items():
                expected(tensors, name, rows.dtype, (self.clips, *rows.shape[1:]))
            expected(tensors, "bank.assignments", torch.int64, (self.clips,))

        self._ranks.first(check)
        for name, rows in own.items():
            if self._ranks.leads:
                rows.copy_(tensors[name][self.own])
            self._ranks.rows_from_first(rows, self.parts, tensors[name].__getitem__ if self._ranks.leads else None)

    def load(self, directory: Path, epoch: int) -> Tensor:
        """Reads generation `gen-<epoch>`, every chunk verified, and keeps this rank's rows; for rank 0. Returns its
        assignments (N,) int64.

        Raises:
            DamagedBank: it is missing, damaged, or of other clips, another width, type or epoch.
        """
        generation = Generation(directory / generation_name(epoch))
        has, dim = generation.manifest, self.rows.shape[1]
        found = f"epoch {has.epoch}, {has.rows} x {has.dim} {has.dtype} from clip {has.first_clip_id} on"
        wanted = f"epoch {epoch}, {self.clips} x {dim} {self.dtype} from clip {self.first_id} on"
        if found != wanted:
            raise DamagedBank(
                f"{generation.path}: a memory bank of {found}, but this run needs {wanted}; "
                "was the run trained on another shard set?"
            )
        for start, block in generation.blocks():
            own = self.rows[start : start + len(block)]
            own.copy_(block[: len(own)])
        return generation.assignments().to(self.rows.device)

    def load_others(self, directory: Path, epoch: int) -> None:
        """Gives the other ranks their rows of a generation that rank 0 has loaded. Ours: rank 0 reads the chunks of
        those rows again, since before it knew that all are sound it could not know which generation they will take; so
        the run directory need not be visible to the other ranks.
        """
        read = Generation(directory / generation_name(epoch)).rows if self._ranks.leads else None
        self._ranks.rows_from_first(self.rows, self.parts, read)
