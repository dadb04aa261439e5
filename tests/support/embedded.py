"""What `embed` wrote, by the readers of its formats, and what the embedder gives for the same recordings."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import zarr
from numpy.typing import NDArray

from unfused_fast.embedding.embedder import Embedder
from unfused_fast.embedding.sources import embed_rows
from unfused_fast.shards.sources.row import SourceRow

Table = dict[str, Any]


def expected(embedder: Embedder, paths: list[Path]) -> NDArray[np.float32]:
    """(N, D) of whole files, one by one."""
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return np.concatenate([embedder.embed(wave, 16000).numpy() for wave in waves])


def rows_of(*given: Path) -> list[SourceRow]:
    return embed_rows([str(path) for path in given], print)


def table_of(out: Path) -> Table:
    """Columns of a file of any format, by the reader of that format."""
    if out.suffix == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            return {**{name: arrays[name] for name in arrays.files}, "about": json.loads(str(arrays["about"]))}
    if out.suffix == ".parquet":
        table = pq.read_table(out)
        columns = {name: table[name].to_numpy() for name in table.schema.names if name != "embedding"}
        about = json.loads(table.schema.metadata[b"about"])
        return {**columns, "embeddings": np.stack(table["embedding"].to_pylist()).astype(np.float32), "about": about}
    if out.suffix.lower() == ".csv":
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        features = [name for name in rows[0] if name.startswith("embedding_")]
        numbers = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0] if name != "path"}
        values = np.stack([numbers.pop(name) for name in features], axis=1)
        return {**numbers, "path": np.array([row["path"] for row in rows]), "embeddings": values, "about": {}}
    group = zarr.open_group(out, mode="r")
    return {**{name: np.asarray(array[:]) for name, array in group.arrays()}, "about": group.attrs["about"]}  # type: ignore[index]
