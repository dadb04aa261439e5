"""What a generation of the memory bank says about itself, and how its rows are cut.   N rows, D features.

BANK/gen-000042/manifest.json       written last: a generation without it is none
BANK/gen-000042/zarr.json           a zarr v3 group, readable by any zarr
BANK/gen-000042/embeddings/c/0/0    (N, D) float32, or the bits of bfloat16 as uint16; one file a shard
BANK/gen-000042/assignments/c/0     (N,) int64, cut as the embeddings are
BANK/*.partial, BANK/*.stale        what a killed process left; the next save sweeps them
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import is_count, is_number

FORMAT = 1
MANIFEST, GROUP = "manifest.json", "zarr.json"
EMBEDDINGS, ASSIGNMENTS = "embeddings", "assignments"
HEADERS = (GROUP, f"{EMBEDDINGS}/{GROUP}", f"{ASSIGNMENTS}/{GROUP}")
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}
CHUNK_BYTES = 16 * 2**20
"""Most bytes of a chunk, the least that is read and digested. Ours: 8192 rows at D = 512 in float32."""
CHUNKS_PER_SHARD = 8
"""Most chunks of a shard, which is a file. Ours: 128 MiB, so that a million rows are 16 files, not 2000."""
LARGEST_MANIFEST = 64 * 2**20
"""Bytes above which a file is no manifest of ours and is not read. Ours: room for 300,000 chunks."""

BankType = Literal["float32", "bfloat16"]


class DamagedBank(UserError):
    """A generation that cannot be used; `fact` says why, without what to do."""

    def __init__(self, fact: str) -> None:
        self.fact = fact
        super().__init__(f"{fact}; use another generation (see: unfused-fast bank info)")


@dataclass(frozen=True)
class Layout:
    """How N rows are cut into chunks, shards and parts, one part a rank."""

    rows: int
    dim: int
    dtype: BankType
    ranks: int
    chunk_rows: int
    shard_rows: int
    """A multiple of chunk_rows."""
    rank_rows: int
    """A multiple of shard_rows, so that no file holds rows of two ranks; the last ranks may have fewer rows, or
    none.
    """

    def part(self, rank: int) -> tuple[int, int]:
        """First row, and the row after the last, of a rank."""
        return min(rank * self.rank_rows, self.rows), min((rank + 1) * self.rank_rows, self.rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of embeddings."""
        return self.dim * ITEM_BYTES[self.dtype]


def layout(rows: int, dim: int, dtype: BankType, ranks: int = 1) -> Layout:
    """Cuts rows evenly over ranks, then into shards and chunks of at most CHUNK_BYTES.

    Ours: zarr asks for one size of shard in the whole array, so a rank's rows are rounded up to equal chunks: by less
    than one row a chunk.

    Raises:
        ValueError: rows, dim or ranks below 1.
    """
    if min(rows, dim, ranks) < 1:
        raise ValueError(f"{rows} rows of {dim} features over {ranks} ranks: want at least 1 of each")
    most = max(1, CHUNK_BYTES // (dim * ITEM_BYTES[dtype]))
    wanted = math.ceil(rows / ranks)
    shards = math.ceil(wanted / (most * CHUNKS_PER_SHARD))
    chunks = math.ceil(wanted / (shards * most))
    chunk_rows = math.ceil(wanted / (shards * chunks))
    return Layout(rows, dim, dtype, ranks, chunk_rows, chunks * chunk_rows, shards * chunks * chunk_rows)


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of the rows; those of rows that hold NaN or infinity are only counted."""

    min: float | None
    mean: float | None
    max: float | None
    not_finite: int


@dataclass(frozen=True)
class Chunk:
    """Digests (sha256, hex) of the bytes of a chunk's rows, without what pads the last chunk."""

    first_row: int
    rows: int
    embeddings: str
    assignments: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds."""

    epoch: int
    step: int
    """Optimiser steps done when the rows were complete."""
    first_clip_id: int
    """Row i belongs to clip first_clip_id + i."""
    rows: int
    dim: int
    dtype: BankType
    chunk_rows: int
    shard_rows: int
    norms: Norms
    chunks: tuple[Chunk, ...]
    """In order, from row 0 on."""
    headers: Mapping[str, str]
    """The sha256 (hex) of each of HEADERS."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Text of manifest.json: the fields, and `digest`, which is that of the other fields."""
        value = asdict(self)
        return json.dumps({**value, "digest": _digest(value)}, indent=1, allow_nan=False) + "\n"

    def file_sizes(self) -> dict[str, int]:
        """Path below the generation -> bytes, of every file of rows: what zarr's sharding codec makes of them."""
        sizes, per_shard = {}, self.shard_rows // self.chunk_rows
        for name, row_bytes in ((EMBEDDINGS, self.dim * ITEM_BYTES[self.dtype]), (ASSIGNMENTS, 8)):
            for shard in range(math.ceil(self.rows / self.shard_rows)):
                rows = min(self.shard_rows, self.rows - shard * self.shard_rows)
                chunks = math.ceil(rows / self.chunk_rows)
                sizes[shard_name(name, shard)] = chunks * self.chunk_rows * row_bytes + index_bytes(per_shard)
        return sizes


def shard_name(array: str, shard: int) -> str:
    """Path of a shard below its generation."""
    return f"{array}/c/{shard}/0" if array == EMBEDDINGS else f"{array}/c/{shard}"


def index_bytes(chunks: int) -> int:
    """Bytes at the end of a shard of so many chunks: offset and length of each, and a CRC-32C."""
    return 16 * chunks + 4


def generation_name(epoch: int) -> str:
    """Folder of an epoch's generation."""
    return f"gen-{epoch:06d}"


def read_manifest(generation: Path) -> Manifest:
    """Reads and checks manifest.json, the headers, and the size of every file; the rows are not read.

    Raises:
        DamagedBank: something is missing, malformed, of another size, or disagrees with the rest.
        UserError: it may not be read.
    """
    path = generation / MANIFEST
    try:
        if (size := path.stat().st_size) > LARGEST_MANIFEST:
            raise DamagedBank(f"{path}: {size:,} bytes; this is not a bank manifest")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        what = "the memory bank has no such generation" if not generation.exists() else f"there is no {MANIFEST}"
        raise DamagedBank(f"{generation}: it is missing: {what}") from None
    except PermissionError as error:
        raise unreadable(path, error, "") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedBank(f"{path}: cannot be read ({cause(error)})") from error
    manifest = _checked(path, value)
    for name, wanted in manifest.headers.items():
        _check_header(generation / name, wanted)
    for name, wanted_bytes in manifest.file_sizes().items():
        try:
            found = (generation / name).stat().st_size
        except OSError as error:
            raise DamagedBank(f"{generation / name}: {error.strerror}, but {MANIFEST} counts on it") from error
        if found != wanted_bytes:
            raise DamagedBank(f"{generation / name}: {found:,} bytes, but it was written with {wanted_bytes:,}")
    return manifest


def _checked(path: Path, value: Any) -> Manifest:
    names = {field.name for field in fields(Manifest)}
    if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
        raise DamagedBank(f"{path}: format {value['format']}, but this program reads format {FORMAT}")
    if not isinstance(value, dict) or set(value) != names | {"digest"}:
        raise DamagedBank(f"{path}: it is no manifest of a memory bank")
    if value.pop("digest") != _digest(value):
        raise DamagedBank(f"{path}: it does not have the digest it was written with")
    try:
        manifest = Manifest(
            **{
                **value,
                "norms": Norms(**value["norms"]),
                "chunks": tuple(Chunk(**chunk) for chunk in value["chunks"]),
            }
        )
        counts = (manifest.epoch, manifest.step, manifest.first_clip_id, manifest.rows, manifest.dim)
        sizes = [size for chunk in manifest.chunks for size in (chunk.first_row, chunk.rows)]
        if not all(map(is_count, (*counts, manifest.chunk_rows, manifest.shard_rows, *sizes))):
            raise ValueError("one of its counts is no whole number")
        norms = (manifest.norms.min, manifest.norms.mean, manifest.norms.max)
        if not all(norm is None or is_number(norm) for norm in norms) or not is_count(manifest.norms.not_finite):
            raise ValueError("its norms are not finite")
        if not 1 <= manifest.chunk_rows <= manifest.shard_rows or manifest.rows < 1:
            raise ValueError("its rows, chunks or shards have no rows")
        starts = [chunk.first_row for chunk in manifest.chunks]
        ends = [chunk.first_row + chunk.rows for chunk in manifest.chunks]
        if [0, *ends] != [*starts, manifest.rows] or manifest.dtype not in ITEM_BYTES or manifest.dim < 1:
            raise ValueError("its chunks do not make up its rows")
        if any(chunk.rows > manifest.chunk_rows for chunk in manifest.chunks):
            raise ValueError("a chunk has more rows than the size of a chunk")
        if manifest.shard_rows % manifest.chunk_rows or set(manifest.headers) != set(HEADERS):
            raise ValueError("its sizes or headers are not those of a memory bank")
    except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise DamagedBank(f"{path}: it is no manifest of a memory bank ({error})") from error
    return manifest


def _check_header(path: Path, wanted: str) -> None:
    try:
        if (size := path.stat().st_size) > 2**20:
            raise DamagedBank(f"{path}: {size:,} bytes, but the header of an array has about a thousand")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except PermissionError as error:
        raise unreadable(path, error, "") from error
    except OSError as error:
        raise DamagedBank(f"{path}: cannot be read ({cause(error)})") from error
    if found != wanted:
        raise DamagedBank(f"{path}: it does not have the digest it was written with")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
