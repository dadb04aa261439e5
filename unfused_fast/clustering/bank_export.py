"""The memory bank for other programs: npz, parquet, or TensorBoard's projector.   N rows, D features.

Rows are read chunk by chunk, each verified, and written as they come: no more than a chunk of them is held.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unfused_fast.clustering.bank_files import Block, Generation
from unfused_fast.errors import UserError, cause, escaped
from unfused_fast.shards.sets.table import ShardSet

Format = Literal["npz", "parquet", "projector"]
Progress = Callable[[int, int, int], None]
"""Called with (rows done, rows in all, 0)."""


def format_of(out: Path) -> Format:
    """What OUT's ending means. Raises UserError for another one."""
    known: dict[str, Format] = {".npz": "npz", ".parquet": "parquet", "": "projector"}
    if out.suffix not in known:
        raise UserError(
            f"{out}: want a name that ends in .npz or .parquet, or one without an ending: a folder for TensorBoard's "
            "projector"
        )
    return known[out.suffix]


def export(
    bank: Generation, out: Path, kind: Format, shards: ShardSet | None = None, progress: Progress | None = None
) -> None:
    """Writes a generation to `out`, which is there when it is complete and not before. bfloat16 becomes float32, exact.

    npz: arrays embeddings (N, D) float32, assignments (N,) and clip_ids (N,) int64. parquet: a row a clip with clip_id,
    assignment, with `shards` also split, label and source, and embedding, a list of D float32. projector: a folder with
    vectors.tsv, metadata.tsv and projector_config.pbtxt, for `tensorboard --logdir`. Labels are names; those of a clip
    with several are joined by `|`.

    Raises:
        UserError: `out` is there already or cannot be written, the shard set does not have the bank's clips;
            DamagedBank: rows are not as they were written.
    """
    if out.exists():
        raise UserError(f"{out}: it exists; name another place, or remove it first")
    clips = None if shards is None else _clips(bank, shards)
    blocks = _with_progress(bank, progress)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
            partial = Path(folder) / out.name
            if kind == "npz":
                _write_npz(bank, blocks, partial)
            elif kind == "parquet":
                _write_parquet(bank, blocks, partial, clips)
            else:
                _write_projector(bank, blocks, partial, clips)
            partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); free space, or name another place") from error


def _with_progress(bank: Generation, progress: Progress | None) -> Iterator[Block]:
    for block in bank.blocks():
        yield block
        if progress is not None:
            progress(block.first_row + len(block.rows), bank.manifest.rows, 0)


def _float32(block: Block) -> NDArray[np.float32]:
    """(n, D), contiguous; a view unless the rows are bfloat16."""
    rows: NDArray[np.float32] = block.rows.float().numpy()
    return rows


def _write_npz(bank: Generation, blocks: Iterator[Block], path: Path) -> None:
    """np.savez's format, a zip of .npy files, without holding all rows; not compressed: numbers like these do not
    shrink.
    """
    ids = np.arange(bank.clip_ids.start, bank.clip_ids.stop, dtype=np.int64)
    rows, dim = bank.manifest.rows, bank.manifest.dim
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(_float32(block).data.cast("B"))
        for name, values in (("assignments", bank.assignments().numpy()), ("clip_ids", ids)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values)


def _write_parquet(bank: Generation, blocks: Iterator[Block], path: Path, clips: pa.Table | None) -> None:
    dim = bank.manifest.dim
    names = [] if clips is None else clips.schema.names
    plain = pa.schema([("clip_id", pa.int64()), ("assignment", pa.int64()), *((name, pa.string()) for name in names)])
    schema = plain.append(pa.field("embedding", pa.list_(pa.float32(), dim)))
    schema = schema.with_metadata({"epoch": str(bank.manifest.epoch), "step": str(bank.manifest.step)})
    columns = [name for name in schema.names if name != "embedding"]
    # Python's own file, whose errors carry the number of a full disk; rows of a chunk are a row group
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=names, write_statistics=columns) as writer,
    ):
        for block in blocks:
            table = _metadata(bank, block, clips)
            values = pa.FixedSizeListArray.from_arrays(pa.array(_float32(block).reshape(-1)), dim)
            writer.write_table(table.append_column(schema.field("embedding"), values).cast(schema))


def _write_projector(bank: Generation, blocks: Iterator[Block], folder: Path, clips: pa.Table | None) -> None:
    """Tab-separated, numbers as short as they can be and still be read back as the same float32."""
    folder.mkdir()
    dim = bank.manifest.dim
    with (folder / "vectors.tsv").open("wb") as vectors, (folder / "metadata.tsv").open("wb") as metadata:
        for block in blocks:
            features = np.ascontiguousarray(_float32(block).T)
            table = pa.table([pa.array(feature) for feature in features], names=[str(number) for number in range(dim)])
            _write_tsv(table, vectors)
            table = _metadata(bank, block, clips)
            if block.first_row == 0:
                metadata.write(("\t".join(table.schema.names) + "\n").encode())
            _write_tsv(table, metadata)
    (folder / "projector_config.pbtxt").write_text(
        f"embeddings {{\n  tensor_name: {json.dumps(f'memory bank, epoch {bank.manifest.epoch}')}\n"
        '  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n',
        encoding="utf-8",
    )


def _write_tsv(table: pa.Table, file: IO[bytes]) -> None:
    options = pa_csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pa_csv.write_csv(table, file, options)


def _metadata(bank: Generation, block: Block, clips: pa.Table | None) -> pa.Table:
    """clip_id, assignment, and the columns of `clips` of a block's rows."""
    first, rows = block.first_row, len(block.rows)
    start = bank.manifest.first_clip_id + first
    table = pa.table(
        {
            "clip_id": pa.array(np.arange(start, start + rows, dtype=np.int64)),
            "assignment": pa.array(block.assignments.numpy()),
        }
    )
    if clips is not None:
        for name in clips.schema.names:
            table = table.append_column(name, clips[name].slice(first, rows))
    return table


def _clips(bank: Generation, shards: ShardSet) -> pa.Table:
    """split, label and source of the bank's clips, as text without tabs, line ends or quotes that TSV cannot hold."""
    manifest = bank.manifest
    ids, total = bank.clip_ids, shards.clips.num_rows
    splits = {name: shards.first_id(name) for name, info in shards.manifest.splits.items() if info.clips}
    split = next((name for name, first in splits.items() if first == ids.start), None)
    if split is None or shards.manifest.splits[split].clips != manifest.rows:
        have = ", ".join(
            f"{name} {first} to {first + shards.manifest.splits[name].clips - 1}" for name, first in splits.items()
        )
        raise UserError(
            f"{shards.directory}: the memory bank has clips {ids.start} to {ids.stop - 1}, but of the {total} clips "
            f"here the splits have {have}; name the shard set that the run was trained on"
        )
    clips = shards.clips_in(split)
    names = np.array([_cell(name) for name in shards.manifest.label_names], dtype=object)
    labels = ["|".join(names[row]) if row else "" for row in clips["labels"].to_pylist()]
    return pa.table(
        {
            "split": pa.array([_cell(split)] * manifest.rows),
            "label": pa.array(labels, pa.string()),
            "source": pa.array([_cell(source) for source in clips["source"].to_pylist()], pa.string()),
        }
    )


def _cell(text: str) -> str:
    """Ours: `quoting_style="none"` refuses quotes, and TensorBoard reads them as they are."""
    return escaped(text).replace('"', "''")


def describe(generation: Generation) -> dict[str, Any]:
    """What `unfused-fast bank info` says of a generation that opens."""
    size = sum(path.stat().st_size for path in generation.path.rglob("*") if path.is_file())
    return {**asdict(generation.manifest), "bytes": size}
