"""The memory bank for other programs: npz, parquet, CSV, or TensorBoard's projector.   N rows, D features.

Rows are read chunk by chunk, each verified, and written at once: at most one chunk is in memory.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unfused_fast.clustering.bank_files import Generation
from unfused_fast.endings import by_ending
from unfused_fast.errors import UserError, cause, escaped
from unfused_fast.shards.sets.table import ShardSet

Format = Literal["npz", "parquet", "csv", "projector"]
Rows = Iterator[NDArray[np.float32]]
"""(n, D), contiguous."""


def format_of(out: Path) -> Format:
    """The format by OUT's ending. Raises UserError for an unknown one."""
    known: dict[str, Format] = {".npz": "npz", ".parquet": "parquet", ".csv": "csv", "": "projector"}
    return by_ending(out, known, folder="for TensorBoard's projector")


def export(
    bank: Generation, out: Path, kind: Format, shards: ShardSet | None, progress: Callable[[int, int, int], None]
) -> None:
    """Writes a generation to `out`, which appears only when complete. bfloat16 becomes float32, exactly.

    npz: arrays embeddings (N, D) float32, assignments (N,) and clip_ids (N,) int64. parquet: a row a clip with clip_id,
    assignment, with `shards` also split, label and source, and embedding, a list of D float32. csv: the same, with
    columns embedding_0 to embedding_{D-1}. projector: a folder with
    vectors.tsv, metadata.tsv and projector_config.pbtxt, for `tensorboard --logdir`. Labels are names; those of a clip
    with several are joined by `|`. `progress` is called with (rows done, rows in all, 0).

    Raises:
        UserError: `out` already exists or cannot be written, or the shard set does not have the bank's clips;
            DamagedBank: rows differ from what was written.
    """
    if out.exists():
        raise UserError(f"{out}: it exists; choose another path, or remove it first")
    clips = _clips(bank, shards)

    def rows() -> Rows:
        for start, block in bank.blocks():
            yield block.float().numpy()
            progress(start + len(block), bank.manifest.rows, 0)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
            partial = Path(folder) / out.name
            write = {"npz": _write_npz, "parquet": _write_parquet, "csv": _write_csv, "projector": _write_projector}
            write[kind](bank, rows(), clips, partial)
            partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); free space, or choose another path") from error


def _write_npz(bank: Generation, rows: Rows, clips: pa.Table, path: Path) -> None:
    """As np.savez, without all rows in memory; not compressed, since embeddings hardly compress."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (bank.manifest.rows, bank.manifest.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in rows:
                file.write(block.data.cast("B"))
        for name, column in (("assignments", "assignment"), ("clip_ids", "clip_id")):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, clips[column].to_numpy())


def _write_parquet(bank: Generation, rows: Rows, clips: pa.Table, path: Path) -> None:
    field = pa.field("embedding", pa.list_(pa.float32(), bank.manifest.dim))
    schema = clips.schema.append(field)
    schema = schema.with_metadata({"epoch": str(bank.manifest.epoch), "step": str(bank.manifest.step)})
    names, start = clips.schema.names, 0
    # a Python file object, whose errors have an errno on a full disk; a chunk's rows are a row group
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=names[2:], write_statistics=names) as writer,
    ):
        for block in rows:
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1])
            writer.write_table(clips.slice(start, len(block)).append_column(field, values).cast(schema))
            start += len(block)


def _write_csv(bank: Generation, rows: Rows, clips: pa.Table, path: Path) -> None:
    start = 0
    with path.open("wb") as file:
        for block in rows:
            table = clips.slice(start, len(block))
            for place, values in enumerate(np.ascontiguousarray(block.T)):
                table = table.append_column(f"embedding_{place}", pa.array(values))
            pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=not start, quoting_style="needed"))
            start += len(block)


def _write_projector(bank: Generation, rows: Rows, clips: pa.Table, folder: Path) -> None:
    """Tab-separated, with the shortest numbers that are read back as the same float32."""
    folder.mkdir()
    plain = {"delimiter": "\t", "quoting_style": "none"}
    with (folder / "vectors.tsv").open("wb") as file:
        for block in rows:
            features = dict(zip(map(str, range(block.shape[1])), np.ascontiguousarray(block.T), strict=True))
            pa_csv.write_csv(pa.table(features), file, pa_csv.WriteOptions(include_header=False, **plain))
    with (folder / "metadata.tsv").open("wb") as file:
        file.write(("\t".join(clips.schema.names) + "\n").encode())  # pyarrow would quote them
        pa_csv.write_csv(clips, file, pa_csv.WriteOptions(include_header=False, **plain))
    (folder / "projector_config.pbtxt").write_text(
        f"embeddings {{\n  tensor_name: {json.dumps(f'memory bank, epoch {bank.manifest.epoch}')}\n"
        '  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n',
        encoding="utf-8",
    )


def _clips(bank: Generation, shards: ShardSet | None) -> pa.Table:
    """(N,) clip_id, assignment, and with a set split, label and source, as text without tabs, line ends or quotes that
    TSV cannot hold.
    """
    ids = bank.clip_ids
    columns = {"clip_id": np.arange(ids.start, ids.stop), "assignment": bank.assignments().numpy()}
    if shards is None:
        return pa.table(columns)
    splits = {}
    for name, info in shards.manifest.splits.items():
        if info.clips:
            splits[name] = range(first := shards.first_id(name), first + info.clips)
    split = next((name for name, clips in splits.items() if clips == ids), None)
    if split is None:
        have = ", ".join(f"{name} {clips.start} to {clips.stop - 1}" for name, clips in splits.items())
        raise UserError(
            f"{shards.directory}: the memory bank has clips {ids.start} to {ids.stop - 1}, but of the "
            f"{shards.clips.num_rows} clips here the splits have {have}; name the shard set that the run was trained on"
        )
    clips = shards.clips_in(split)
    names = [_cell(name) for name in shards.manifest.label_names]
    labels = ["|".join(names[label] for label in row or ()) for row in clips["labels"].to_pylist()]
    sources = [_cell(source) for source in clips["source"].to_pylist()]
    return pa.table({**columns, "split": [_cell(split)] * len(ids), "label": labels, "source": sources})


def _cell(text: str) -> str:
    """Ours: `quoting_style="none"` refuses quotes, and TensorBoard reads them as they are."""
    return escaped(text).replace('"', "''")
