"""Writing a generation of the memory bank, so that a kill at any moment leaves the one before it or the new one.

create_generation (rank 0) -> write_part (every rank, its own rows) -> publish (rank 0, once all parts are written).
Whoever has several ranks puts a barrier between the steps.

Shards are written here, not by zarr, in the form of its sharding codec (a chunk's bytes as they are, then the index):
zarr's own writer copies a shard several times on its way to the file, and without any digests was no faster than this
is with them (benchmarks/results/bench_bank.csv). The headers are zarr's, and reading goes through zarr.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.clustering.bank_manifest import (
    ASSIGNMENTS,
    EMBEDDINGS,
    HEADERS,
    MANIFEST,
    Chunk,
    Layout,
    Manifest,
    Norms,
    generation_name,
    read_manifest,
    shard_name,
)
from unfused_fast.errors import UserError, cause
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.sets.shard_files import replace_file

PARTIAL, STALE = ".partial", ".stale"
_ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold. Source: zarr's specification of sharding_indexed."""


def create_generation(directory: Path, epoch: int, cut: Layout) -> Path:
    """Makes the folder in which a generation is written, with zarr's headers; sweeps what a killed process left.

    Raises:
        UserError: the folder cannot be written.
    """
    import zarr

    partial = directory / f"{generation_name(epoch)}{PARTIAL}"
    with _writing(partial):
        for left in (*directory.glob(f"gen-*{PARTIAL}"), *directory.glob(f"gen-*{STALE}")):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        group = zarr.create_group(store=partial, attributes={"epoch": epoch})
        group.create_array(
            EMBEDDINGS,
            shape=(cut.rows, cut.dim),
            chunks=(cut.chunk_rows, cut.dim),
            shards=(cut.shard_rows, cut.dim),
            dtype="float32" if cut.dtype == "float32" else "uint16",
            compressors=None,
            attributes={"dtype": cut.dtype},
            dimension_names=("clip", "feature"),
        )
        group.create_array(
            ASSIGNMENTS,
            shape=(cut.rows,),
            chunks=(cut.chunk_rows,),
            shards=(cut.shard_rows,),
            dtype="int64",
            compressors=None,
            dimension_names=("clip",),
        )
    return partial


def write_part(partial: Path, cut: Layout, first_row: int, rows: NDArray[Any], assignments: NDArray[np.int64]) -> None:
    """Writes the rows of one rank, whole shards of them, to the disk, and what publish needs to know of them.

    Args:
        partial: what create_generation returned.
        first_row: of `rows`, as Layout.part gives it.
        rows: (n, D) float32, or uint16 with the bits of bfloat16.
        assignments: (n,).

    Raises:
        ValueError: rows that do not begin and end with shards, or of another width or type than the layout's.
        UserError: the files cannot be written (a full disk, say).
    """
    wanted = np.dtype(np.float32 if cut.dtype == "float32" else np.uint16)
    last = first_row + len(rows)
    if rows.shape[1:] != (cut.dim,) or rows.dtype != wanted or assignments.shape != (len(rows),):
        raise ValueError(
            f"rows {rows.shape} {rows.dtype} and assignments {assignments.shape}: want (n, {cut.dim}) {wanted} and (n,)"
        )
    if not len(rows):  # a rank more than there are shards
        return
    if first_row % cut.shard_rows or last > cut.rows or (last % cut.shard_rows and last != cut.rows):
        raise ValueError(f"rows {first_row} to {last} of {cut.rows}: want whole shards of {cut.shard_rows} rows")
    # While the disk takes one shard and another is digested, the next is written.
    with _writing(partial), ThreadPoolExecutor(2, "memory bank") as pool:
        syncing: list[Future[None]] = []
        digested: list[Future[tuple[Chunk, NDArray[np.float64]]]] = []
        for start in range(0, len(rows), cut.shard_rows):
            block, ids = rows[start : start + cut.shard_rows], assignments[start : start + cut.shard_rows]
            for name, values in ((EMBEDDINGS, block), (ASSIGNMENTS, ids)):
                path = partial / shard_name(name, (first_row + start) // cut.shard_rows)
                _write_shard(path, values, cut)
                syncing.append(pool.submit(_settle, path))
            for at in range(0, len(block), cut.chunk_rows):
                end = at + cut.chunk_rows
                digested.append(pool.submit(_digest, first_row + start + at, block[at:end], ids[at:end]))
        for future in syncing:
            future.result()
        chunks, norms = zip(*(future.result() for future in digested), strict=True)
        part = {"chunks": [asdict(chunk) for chunk in chunks], "norms": _summary(norms)}
        replace_file(_part_path(partial, first_row), json.dumps(part).encode())


def publish(partial: Path, cut: Layout, *, epoch: int, step: int, first_clip_id: int) -> Path:
    """Turns what create_generation and write_part made into a generation, at once and for good; returns its folder.

    Every file and folder is on the disk before the manifest, the manifest before the new name. Then the generation is
    proved: its manifest is read again under that name, and every file has the size that follows from it. Not more:
    reading all rows again would give back the pages that were just written, not what the disk holds.

    Raises:
        ValueError: the parts are not all there.
        UserError: the files cannot be written.
        DamagedBank: the generation could not be proved.
    """
    with _writing(partial):
        parts = [json.loads(path.read_bytes()) for path in sorted(partial.glob("part-*.json"))]
        chunks = tuple(Chunk(**chunk) for part in parts for chunk in part["chunks"])
        if sum(chunk.rows for chunk in chunks) != cut.rows:
            starts = {chunk.first_row for chunk in chunks}
            missing = [row for row in range(0, cut.rows, cut.shard_rows) if row not in starts]
            raise ValueError(f"{partial}: the shards from rows {missing[:5]} on were not written; want every rank's")
        manifest = Manifest(
            epoch=epoch,
            step=step,
            first_clip_id=first_clip_id,
            rows=cut.rows,
            dim=cut.dim,
            dtype=cut.dtype,
            chunk_rows=cut.chunk_rows,
            shard_rows=cut.shard_rows,
            norms=_joined([part["norms"] for part in parts]),
            chunks=chunks,
            headers={name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in HEADERS},
        )
        for name in HEADERS:
            to_disk(partial / name)
        for path in partial.glob("part-*.json"):
            path.unlink()
        for array in (EMBEDDINGS, ASSIGNMENTS):
            to_disk(partial / array / "c")
            to_disk(partial / array)
        replace_file(partial / MANIFEST, manifest.to_json().encode())
        to_disk(partial)
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        stale = _stale_name(final)
        if final.exists():  # of a run that went back to an earlier epoch
            final.rename(stale)
        partial.rename(final)
        to_disk(final.parent)
        to_disk(final.parent.parent)
        shutil.rmtree(stale, ignore_errors=True)
    read_manifest(final)
    return final


def prune(directory: Path, keep: int) -> None:
    """Deletes all generations but the newest `keep`; each loses its name first, so that none is ever half there.

    What cannot be deleted, because a reader holds its files on a network disk, say, is swept before a later save.
    """
    for old in sorted(directory.glob("gen-??????"))[:-keep]:
        stale = _stale_name(old)
        old.rename(stale)
        shutil.rmtree(stale, ignore_errors=True)


def _stale_name(generation: Path) -> Path:
    """A name beside a generation that none has, for what is to be deleted; create_generation sweeps it if it stays."""
    names = (generation.with_name(f"{generation.name}.{number}{STALE}") for number in itertools.count())
    return next(name for name in names if not name.exists())


def _write_shard(path: Path, values: NDArray[Any], cut: Layout) -> None:
    """The chunks of a shard, the last one of the array padded with zeros; then offset and length of each, and a
    CRC-32C.
    """
    from google_crc32c import value as crc32c

    path.parent.mkdir(parents=True, exist_ok=True)
    chunk_bytes = cut.chunk_rows * values[:1].nbytes
    index = np.full((cut.shard_rows // cut.chunk_rows, 2), _ABSENT, dtype="<u8")
    held = math.ceil(len(values) / cut.chunk_rows)
    index[:held, 0] = np.arange(held) * chunk_bytes
    index[:held, 1] = chunk_bytes
    with path.open("wb") as file:
        file.write(_bytes(values))
        file.write(bytes(held * chunk_bytes - values.nbytes))
        file.write(index.tobytes())
        file.write(int(crc32c(index.tobytes())).to_bytes(4, "little"))


def _settle(path: Path) -> None:
    """Waits until a shard is on the disk, then lets its pages go: nobody reads them while training goes on, and the
    memory serves the audio better.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    to_disk(path.parent)


def _digest(first_row: int, rows: NDArray[Any], assignments: NDArray[np.int64]) -> tuple[Chunk, NDArray[np.float64]]:
    """The digests of a chunk, and the norms of its rows."""
    digests = hashlib.sha256(_bytes(rows)).hexdigest(), hashlib.sha256(_bytes(assignments)).hexdigest()
    return Chunk(first_row, len(rows), *digests), _norms(rows)


def _bytes(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(n, D) -> (n,) norms."""
    wide = rows if rows.dtype == np.float32 else (rows.astype(np.uint32) << 16).view(np.float32)
    norms: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", wide, wide).astype(np.float64))
    # squares that leave float32's range, far from the unit norms that are the rule, are taken again in float64
    if (odd := ~((norms > 1e-15) & (norms < 1e15))).any():
        norms[odd] = np.sqrt(np.square(wide[odd], dtype=np.float64).sum(axis=1))
    return norms


def _summary(norms: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Of one part: what _joined needs of it."""
    values = np.concatenate(norms)
    finite = values[np.isfinite(values)]
    return {
        "min": float(finite.min()) if len(finite) else None,
        "max": float(finite.max()) if len(finite) else None,
        "sum": float(finite.sum()),
        "finite": len(finite),
        "not_finite": len(values) - len(finite),
    }


def _joined(parts: list[dict[str, Any]]) -> Norms:
    some = [part for part in parts if part["finite"]]
    rows = sum(part["finite"] for part in some)
    return Norms(
        min=min((part["min"] for part in some), default=None),
        mean=sum(part["sum"] for part in some) / rows if rows else None,
        max=max((part["max"] for part in some), default=None),
        not_finite=sum(part["not_finite"] for part in parts),
    )


def _part_path(partial: Path, first_row: int) -> Path:
    return partial / f"part-{first_row:015d}.json"


@contextlib.contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """Turns what the disk refuses into a UserError; what was begun is removed, to give the room back."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{partial.with_suffix('')}: the memory bank could not be written ({cause(error)}); "
            "generations before it are intact, so free space and go on with --resume"
        ) from error
