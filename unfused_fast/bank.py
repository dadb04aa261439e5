"""The memory bank: a device tensor of record, persisted to zarr generations.

N clips of the split, D size of a projection, B clips in a batch. Row i belongs to clip first_id + i, where the ids of a
split
are contiguous in the clips table.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfused_fast.errors import UserError

ROWS_PER_CHUNK = 8192
"""Rows of a zarr chunk. Ours: 16 MiB at D = 512, so that a row range reads few bytes beside its own."""
GENERATIONS_KEPT = 2


class MemoryBank:
    """Projections of the last view seen of every clip, and how often each row was written this epoch."""

    def __init__(self, clips: int, dim: int, first_id: int, device: torch.device) -> None:
        self.rows = torch.zeros(clips, dim, device=device)
        self.writes = torch.zeros(clips, dtype=torch.int32, device=device)
        self.first_id = first_id

    def start_epoch(self) -> None:
        """Forgets the write counts."""
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

    def save(self, directory: Path, epoch: int, assignments: Tensor) -> Path:
        """Writes generation `gen-<epoch>` under a temporary name, renames it, drops all but the last two."""
        import zarr

        final = directory / f"gen-{epoch:06d}"
        partial = directory / f"gen-{epoch:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        rows, ids = self.rows.cpu().numpy(), assignments.cpu().numpy()
        try:
            group = zarr.create_group(
                store=partial,
                attributes={
                    "epoch": epoch,
                    "first_clip_id": self.first_id,
                    "digest": _digest(rows.tobytes(), ids.tobytes()),
                },
            )
            group.create_array(
                "embeddings", data=rows, chunks=(min(ROWS_PER_CHUNK, len(rows)), rows.shape[1]), compressors=None
            )
            group.create_array("assignments", data=ids, chunks=(len(ids),))
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(directory.glob("gen-??????"))[:-GENERATIONS_KEPT]:
            shutil.rmtree(old)
        return final

    def load(self, directory: Path, epoch: int) -> Tensor:
        """Reads generation `gen-<epoch>` into the rows; returns its assignments (N,) int64. Raises UserError if it does
        not fit.
        """
        import zarr

        path = directory / f"gen-{epoch:06d}"
        if not path.is_dir():
            raise UserError(f"{path}: this generation of the memory bank is missing; start again with --overwrite")
        try:
            group: Any = zarr.open_group(path, mode="r")
            rows, ids = group["embeddings"][:], group["assignments"][:]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: the memory bank cannot be read ({error}); start again with --overwrite"
            ) from error
        if group.attrs["digest"] != _digest(rows.tobytes(), ids.tobytes()):
            raise UserError(
                f"{path}: the memory bank does not have the digest it was written with; start again with --overwrite"
            )
        if rows.shape != tuple(self.rows.shape) or group.attrs["first_clip_id"] != self.first_id:
            raise UserError(
                f"{path}: a memory bank of {rows.shape}, but this run needs {tuple(self.rows.shape)}; "
                "is it another shard set?"
            )
        self.rows.copy_(torch.from_numpy(rows))
        return torch.from_numpy(ids).to(self.rows.device)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
