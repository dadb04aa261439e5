"""Reading the memory bank: generations on disk, verified chunk by chunk or lazily.   N rows, D features."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfused_fast.clustering.bank_manifest import ASSIGNMENTS, EMBEDDINGS, Chunk, DamagedBank, read_manifest, shard_name
from unfused_fast.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BANK = "bank.zarr"
"""Name of the bank in a run directory."""
GENERATIONS = "gen-" + 6 * "[0-9]"
"""Names of generations in a bank; a partial or stale one has an ending more."""


class Block(NamedTuple):
    """A chunk's rows, verified."""

    first_row: int
    rows: Tensor
    """(n, D) on the CPU."""
    assignments: Tensor
    """(n,) int64 on the CPU."""


class Generation:
    """One generation on disk. Opening reads the manifest and the headers; rows are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises DamagedBank when the manifest, a header or the size of a file is not as it was written."""
        import zarr

        self.path, self.manifest = path, read_manifest(path)
        self.dtype = DTYPES[self.manifest.dtype]
        try:
            group: Any = zarr.open_group(path, mode="r", zarr_format=3)
            self.rows: Any = group[EMBEDDINGS]
            """The zarr array (N, D), float32 or the bits of bfloat16 as uint16; a slice reads only its chunks."""
            self._assignments: Any = group[ASSIGNMENTS]
            for array, width in ((self.rows, (self.manifest.dim,)), (self._assignments, ())):
                chunk, shard = ((rows, *width) for rows in (self.manifest.chunk_rows, self.manifest.shard_rows))
                if (array.chunks, array.shards, array.compressors, array.filters) != (chunk, shard, (), ()):
                    raise ValueError(f"{array.name} is cut or coded in another way than a memory bank")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
            raise DamagedBank(f"{path}: zarr cannot open it ({str(error)[:200]})") from error
        shape = self.manifest.rows, self.manifest.dim
        wanted = "float32" if self.manifest.dtype == "float32" else "uint16"
        if (
            self.rows.shape != shape
            or self.rows.dtype != wanted
            or self._assignments.shape != shape[:1]
            or self._assignments.dtype != "int64"
        ):
            raise DamagedBank(
                f"{path}: arrays {self.rows.shape} {self.rows.dtype} and {self._assignments.shape} "
                f"{self._assignments.dtype}, but its manifest says {shape} {wanted} and {shape[:1]} int64"
            )

    @property
    def clip_ids(self) -> range:
        """The clip of each row."""
        return range(self.manifest.first_clip_id, self.manifest.first_clip_id + self.manifest.rows)

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, (stop - start, D) on the CPU, not verified against their digests."""
        return self._read(self.rows, start, stop).view(self.dtype)

    def chunks(self) -> Iterator[Block]:
        """All rows in order, each chunk verified before it is given. Raises DamagedBank that names file and clips."""
        for future in self._ahead():
            yield future.result()

    def verify(self) -> Iterator[str | None]:
        """For each chunk in order: None, or what is damaged: the file, and the clips of its rows."""
        for future in self._ahead():
            try:
                future.result()
                yield None
            except DamagedBank as error:
                yield error.fact

    def _ahead(self) -> Iterator[Future[Block]]:
        """The chunks in order, the two after the one in use being read and digested in threads."""
        with ThreadPoolExecutor(2, "memory bank") as pool:
            futures: deque[Future[Block]] = deque()
            for chunk in self.manifest.chunks:
                futures.append(pool.submit(self._verified, chunk))
                if len(futures) > 2:
                    yield futures.popleft()
            yield from futures

    def _verified(self, chunk: Chunk) -> Block:
        read = []
        for name, array, wanted in (
            (EMBEDDINGS, self.rows, chunk.embeddings),
            (ASSIGNMENTS, self._assignments, chunk.assignments),
        ):
            values, what = None, "do not have the digest they were written with"
            try:
                values = self._read(array, chunk.first_row, chunk.first_row + chunk.rows)
            except DamagedBank as error:
                what = f"cannot be read ({error.fact})"
            if values is None or hashlib.sha256(values.numpy().data).hexdigest() != wanted:
                first = self.manifest.first_clip_id + chunk.first_row
                file = self.path / shard_name(name, chunk.first_row // self.manifest.shard_rows)
                raise DamagedBank(
                    f"{file}: rows {chunk.first_row} to {chunk.first_row + chunk.rows - 1} (clips {first} to "
                    f"{first + chunk.rows - 1}) {what}"
                )
            read.append(values)
        return Block(chunk.first_row, read[0].view(self.dtype), read[1])

    def _read(self, array: Any, start: int, stop: int) -> Tensor:
        if not 0 <= start <= stop <= self.manifest.rows:
            raise IndexError(f"rows {start} to {stop} of {self.manifest.rows}")
        try:
            values: Any = np.ascontiguousarray(array[start:stop])
        except (OSError, ValueError, RuntimeError) as error:
            raise DamagedBank(f"{type(error).__name__}: {error}") from error
        return torch.from_numpy(values)


def bank_folder(path: Path) -> Path:
    """The folder of generations that a run directory or a bank means. Raises UserError: neither of these."""
    for folder in (path / BANK, path):
        if any(folder.glob(GENERATIONS)):
            return folder
    raise UserError(
        f"{path}: it holds no memory bank; name a run of train pretrain, its {BANK}, or one generation in there"
    )


def generation_paths(path: Path) -> list[Path]:
    """Folders of the generations of a run or bank, oldest first; of a generation, that one. Raises UserError: none."""
    if path.match(GENERATIONS) and path.is_dir():
        return [path]
    return sorted(bank_folder(path).glob(GENERATIONS))


def open_bank(path: Path, epoch: int | None = None) -> Generation:
    """Opens a generation of a run or bank, lazily: the newest, or that of an epoch.

    Raises:
        UserError: there is none, or none of that epoch; DamagedBank where what it says of itself does not hold.
    """
    found = generation_paths(path)
    if epoch is not None:
        by_epoch = {int(item.name[4:]): item for item in found}
        if epoch not in by_epoch:
            raise UserError(f"{path}: no generation of epoch {epoch}; it has {', '.join(map(str, by_epoch))}")
        return Generation(by_epoch[epoch])
    return Generation(found[-1])
