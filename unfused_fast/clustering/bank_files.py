"""The memory bank on disk: a zarr group, called a generation, for each epoch whose rows are kept.   N rows, D features.

BANK/gen-000042/zarr.json            zarr v3, readable by any zarr; the attributes of the group are its Manifest
BANK/gen-000042/embeddings/c/0/0     (N, D) float32, or the bits of bfloat16 as uint16; a file a chunk, with a CRC-32C
BANK/gen-000042/assignments/c/0      (N,) int64
BANK/tmp-*                           left by a killed process; the next save deletes it

A generation is written under another name and renamed once it is on the disk, so a kill leaves either the one before or
the new one. Ours: chunks are not combined into shards, which take zarr 1.3 to 1.9 times as long to write.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import is_count, is_number, read_json
from unfused_fast.shards.packing.building import to_disk

BankType = Literal["float32", "bfloat16"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BANK = "bank.zarr"
"""Name of the bank in a run directory."""
FORMAT = 2
GENERATIONS_KEPT = 2
"""Equal to the number of checkpoints kept, so that each checkpoint has its generation."""
CHUNK_BYTES = 16 * 2**20
"""Largest size of a chunk, which is a file and the smallest unit that is read. Ours: 8192 rows at D = 512 in float32;
zarr copies larger ones at a third of the speed."""
CHECKSUM_BYTES = 4
GENERATIONS = "gen-" + 6 * "[0-9]"
"""Names of generations in a bank."""
TEMPORARY = "tmp-"


class DamagedBank(UserError):
    """A generation that cannot be used; `fact` is the reason, without advice."""

    def __init__(self, fact: str) -> None:
        self.fact = fact
        super().__init__(f"{fact}; use another generation (see: unfused-fast bank info)")


@dataclass(frozen=True)
class Manifest:
    """The metadata of a generation."""

    epoch: int
    step: int
    """Optimiser steps done when the rows were complete."""
    first_clip_id: int
    """Row i belongs to clip first_clip_id + i."""
    rows: int
    dim: int
    dtype: BankType
    norms: dict[str, float | None]
    """`min`, `mean` and `max` of the rows' Euclidean norms, None where no row is finite, and the number `not_finite` of
    rows that hold NaN or infinity."""
    format: int = FORMAT

    def files(self) -> Iterator[tuple[str, int]]:
        """Path below the generation, and bytes, of every file of rows."""
        for name, row_bytes in (("embeddings", self.row_bytes), ("assignments", 8)):
            rows = _chunk_rows(self.rows, row_bytes)
            for number in range(math.ceil(self.rows / rows)):
                yield _file(name, number), rows * row_bytes + CHECKSUM_BYTES

    @property
    def row_bytes(self) -> int:
        """Of a row of embeddings."""
        return self.dim * DTYPES[self.dtype].itemsize


def generation_name(epoch: int) -> str:
    """Folder of an epoch's generation."""
    return f"gen-{epoch:06d}"


def _chunk_rows(rows: int, row_bytes: int) -> int:
    """Rows of a chunk: equal chunks of at most CHUNK_BYTES, so that the padding of the last one is less than one row
    per chunk.
    """
    chunks = math.ceil(rows / max(1, CHUNK_BYTES // row_bytes))
    return math.ceil(rows / chunks)


def _file(name: str, chunk: int) -> str:
    return f"embeddings/c/{chunk}/0" if name == "embeddings" else f"{name}/c/{chunk}"


def _create(store: Any, manifest: Manifest) -> dict[str, Any]:
    """The group that belongs to a manifest, without rows: its arrays by name."""
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(store=store, attributes=asdict(manifest), zarr_format=3)
    stored = "float32" if manifest.dtype == "float32" else "uint16"
    return {
        name: group.create_array(
            name,
            shape=(manifest.rows, *width),
            chunks=(_chunk_rows(manifest.rows, row_bytes), *width),
            dtype=dtype,
            attributes={"dtype": manifest.dtype} if width else {},
            dimension_names=("clip", "feature")[: 1 + len(width)],
            compressors=Crc32cCodec(),
            config={"write_empty_chunks": True},
        )
        for name, width, row_bytes, dtype in (
            ("embeddings", (manifest.dim,), manifest.row_bytes, stored),
            ("assignments", (), 8, "int64"),
        )
    }


def write_generation(
    directory: Path,
    rows: Tensor,
    assignments: Tensor,
    *,
    epoch: int,
    step: int,
    first_clip_id: int,
    then: Callable[[], object] | None = None,
) -> Path:
    """Writes rows (N, D) and assignments (N,), both on the CPU, as generation `epoch`; returns its folder.

    Then calls `then`, and deletes all but this one and those before it that make up GENERATIONS_KEPT; what cannot be
    deleted now is deleted by a later save.

    Raises:
        UserError: the files cannot be written.
    """
    dtype: BankType = "float32" if rows.dtype == torch.float32 else "bfloat16"
    manifest = Manifest(epoch, step, first_clip_id, len(rows), rows.shape[1], dtype, _norms(rows))
    # numpy has no bfloat16: its bits are stored, so that nothing is rounded
    bits = rows.numpy() if dtype == "float32" else rows.view(torch.int16).numpy().view(np.uint16)
    final = directory / generation_name(epoch)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary_folder = partial(TemporaryDirectory[str], prefix=TEMPORARY, dir=directory, ignore_cleanup_errors=True)
        with temporary_folder() as temporary:
            made = Path(temporary, "new")
            for array, values in zip(_create(made, manifest).values(), (bits, assignments.numpy()), strict=True):
                for start in range(0, manifest.rows, array.chunks[0]):
                    array[start : start + array.chunks[0]] = values[start : start + array.chunks[0]]
            for path in (*made.rglob("*"), made):
                to_disk(path)
            if final.exists():  # from a run that was resumed at an earlier epoch
                final.rename(Path(temporary, "old"))
            made.rename(final)
            to_disk(directory)
            to_disk(directory.parent)
        if then is not None:
            then()
        there = sorted(directory.glob(GENERATIONS))
        end = there.index(final) + 1  # those after it are from before the run was resumed at an earlier epoch
        for old in {*there} - {*there[max(0, end - GENERATIONS_KEPT) : end]}:
            with temporary_folder() as temporary:  # renamed first, so that a generation is never half deleted
                old.rename(Path(temporary, "old"))
    except OSError as error:
        raise UserError(
            f"{final}: the memory bank could not be written ({cause(error)}); generations before it are intact, so "
            "free space and continue with --resume"
        ) from error
    return final


def _norms(rows: Tensor) -> dict[str, float | None]:
    norms = torch.cat([torch.linalg.vector_norm(block.float(), dim=1) for block in torch.split(rows, 1024)]).double()
    odd = ~((norms > 1e-15) & (norms < 1e15))  # their squares may exceed float32's range
    norms[odd] = torch.linalg.vector_norm(rows[odd].double(), dim=1)
    finite = norms[norms.isfinite()]
    found = torch.stack([finite.min(), finite.mean(), finite.max()]).tolist() if len(finite) else [None] * 3
    return {**dict(zip(("min", "mean", "max"), found, strict=True)), "not_finite": len(norms) - len(finite)}


class Generation:
    """One generation on disk. Opening reads the headers; rows are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises DamagedBank when a header or the size of a file differs from what was written."""
        import zarr

        self.path, self.manifest = path, _read_manifest(path)
        for name, size in self.manifest.files():  # zarr reads a missing file as zeros
            file = path / name
            found = file.stat().st_size if file.is_file() else 0
            if found != size:
                raise DamagedBank(f"{file}: {found:,} bytes, but it was written with {size:,}")
        try:
            group: Any = zarr.open_group(path, mode="r", zarr_format=3)
            wanted = _create(zarr.storage.MemoryStore(), self.manifest)
            self._arrays: dict[str, Any] = {name: group[name] for name in wanted}
            if any(self._arrays[name].metadata != array.metadata for name, array in wanted.items()):
                raise ValueError("its arrays are not stored like those of a memory bank")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
            raise DamagedBank(f"{path}: zarr cannot open it ({str(error)[:200]})") from error

    @property
    def clip_ids(self) -> range:
        """The clip of each row."""
        return range(self.manifest.first_clip_id, self.manifest.first_clip_id + self.manifest.rows)

    def assignments(self) -> Tensor:
        """(N,) int64, verified. Raises DamagedBank that names file and clips."""
        return torch.cat([self._read("assignments", start) for start in self._starts("assignments")])

    def blocks(self, part: slice = slice(None)) -> Iterator[tuple[int, Tensor]]:
        """First row and rows (n, D) of each chunk, verified; with `part` of its chunks only, and only its rows. Raises
        DamagedBank that names file and clips.
        """
        first, stop, _ = part.indices(self.manifest.rows)
        size = self._arrays["embeddings"].chunks[0]
        for start in range(first // size * size, stop, size):
            rows, before = self._read("embeddings", start), max(0, first - start)
            yield start + before, rows[before : stop - start].view(DTYPES[self.manifest.dtype])

    def rows(self, part: slice = slice(None)) -> Tensor:
        """All rows, (N, D), or those of a part that is not empty."""
        return torch.cat([rows for _, rows in self.blocks(part)])

    def verify(self) -> Iterator[str | None]:
        """For each file of rows: None, or what is damaged: the file, and the clips of its rows."""
        for name in self._arrays:
            for start in self._starts(name):
                try:
                    self._read(name, start)
                    yield None
                except DamagedBank as error:
                    yield error.fact

    def _starts(self, name: str) -> range:
        return range(0, self.manifest.rows, self._arrays[name].chunks[0])

    def _read(self, name: str, start: int) -> Tensor:
        """The chunk of an array that begins with a row."""
        array, clips = self._arrays[name], self.clip_ids[start : start + self._arrays[name].chunks[0]]
        try:
            return torch.from_numpy(np.ascontiguousarray(array[start : start + len(clips)]))
        except (OSError, ValueError, RuntimeError) as error:
            place = f"{self.path / _file(name, start // array.chunks[0])}: rows {start} to {start + len(clips) - 1}"
            which = f"(clips {clips[0]} to {clips[-1]})"
            raise DamagedBank(f"{place} {which} are not as they were written ({cause(error)})") from error

    def describe(self) -> dict[str, Any]:
        """The output of `unfused-fast bank info` about it."""
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        return {**asdict(self.manifest), "bytes": size}


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest(**read_json(path / "zarr.json")["attributes"])
        counts = (manifest.epoch, manifest.step, manifest.first_clip_id, manifest.rows, manifest.dim)
        norms = [manifest.norms[name] for name in ("min", "mean", "max", "not_finite")]
        sound = all(map(is_count, counts)) and all(norm is None or is_number(norm) for norm in norms)
        if not sound or not manifest.rows * manifest.dim or manifest.format != FORMAT or manifest.dtype not in DTYPES:
            raise ValueError("its attributes are not those of a memory bank")
    except FileNotFoundError:
        raise DamagedBank(f"{path}: it is missing") from None
    except PermissionError as error:
        raise unreadable(path, error, "") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedBank(
            f"{path / 'zarr.json'}: not a memory bank of format {FORMAT} ({cause(error)[:200]})"
        ) from error
    return manifest


def generation_paths(path: Path) -> list[Path]:
    """Folders of the generations of a run or bank, oldest first; of a generation, that one. Raises UserError: none."""
    if path.match(GENERATIONS) and path.is_dir():
        return [path]
    for folder in (path / BANK, path):
        if found := sorted(folder.glob(GENERATIONS)):
            return found
    raise UserError(
        f"{path}: it holds no memory bank; give a run of train pretrain by decar-v2 or decar-v1, its {BANK}, or one "
        "generation of that"
    )


def open_bank(path: Path, epoch: int | None = None) -> Generation:
    """Opens a generation of a run or bank: the newest, or that of an epoch.

    Raises:
        UserError: there is none, or none of that epoch; DamagedBank where its headers or sizes are damaged.
    """
    found = {int(item.name[4:]): item for item in generation_paths(path)}
    wanted = max(found) if epoch is None else epoch
    if wanted not in found:
        raise UserError(f"{path}: no generation of epoch {epoch}; it has {', '.join(map(str, found))}")
    return Generation(found[wanted])
