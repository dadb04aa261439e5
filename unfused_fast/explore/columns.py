"""What clips can be coloured by, and their clusters.   N clips, K clusters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.clustering import spherical_kmeans
from unfused_fast.console import counted
from unfused_fast.errors import UserError, cause
from unfused_fast.shards.sets.table import NO_LABEL, ShardSet
from unfused_fast.training import read_description

PSEUDO_LABELS = "pseudo_labels.parquet"
"""What stage 2 writes into its run."""
MOST_CLUSTERS = 64
CENTRAL = 5
"""Clips named of each cluster."""
KEYS = ("clip_id", "source", "path")
"""Columns by which a table's rows are matched with clips."""
TABLE = "want a CSV or parquet file"


@dataclass(frozen=True)
class Column:
    """A value of each clip."""

    name: str
    values: NDArray[Any]
    """(N,) int32 index into `names`, -1 for none; or float32, NaN for none."""
    names: tuple[str, ...] | None = None
    """Of categories; None for numbers."""

    def of(self, clips: NDArray[np.int64]) -> Column:
        """The column of some clips."""
        return replace(self, values=self.values[clips])


def categories(name: str, values: Sequence[Any]) -> Column:
    """Values, None for none, as categories in order of their text, numbers by size."""
    found = sorted({value for value in values if value is not None}, key=lambda value: (isinstance(value, str), value))
    codes = {value: code for code, value in enumerate(found)}
    codes[None] = -1
    return Column(name, np.array([codes[value] for value in values], np.int32), tuple(map(str, found)))


def columns_of(shards: ShardSet) -> list[Column]:
    """What the set knows of its clips, without what is the same for all of them.

    label is a clip's name or, of a multi-label set, all its names between commas; an empty name is kept as such.
    """
    table = shards.clips
    made = [categories("label", _labels(shards)), categories("split", table["split"].to_pylist())]
    made += [categories(name, table[name].to_pylist()) for name in ("group", "fold", "file_rate_hz", "file_channels")]
    made += [Column(name, table[name].to_numpy().astype(np.float32)) for name in ("seconds", "clipped_share")]
    return [column for column in made if len(np.unique(column.values)) > 1 and not _names_each(column)]


def _labels(shards: ShardSet) -> list[str | None]:
    names = shards.manifest.label_names
    return [", ".join(names[label] for label in ids) if ids else None for ids in shards.clips["labels"].to_pylist()]


def _names_each(column: Column) -> bool:
    """Whether (nearly) every clip has a category of its own, as files that are their own group: nothing to colour."""
    return column.names is not None and len(column.names) > max(20, 0.5 * len(column.values))


def table_digest(path: Path) -> str:
    """sha256 (hex) of a file of columns. Raises UserError for one that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({cause(error)}); {TABLE}") from error


def columns_in(path: Path, shards: ShardSet, taken: Collection[str] = ()) -> list[Column]:
    """The columns of a CSV or parquet file with a column clip_id, source or path.

    Texts, booleans and whole numbers are categories, other numbers numbers; lists, such as embeddings, are left out.
    The name of a column that is `taken` gets the file's behind it, and one without any value is left out, as are copies
    of the set's own labels, splits, keys and sources.

    Raises:
        UserError: not readable, no such column, no clip of this set, or a key that is there twice.
    """
    try:
        if path.suffix.lower() == ".csv":
            from pyarrow import csv

            table = csv.read_csv(path)
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({cause(error)}); {TABLE}") from error
    if twice := sorted({name for name in table.schema.names if table.schema.names.count(name) > 1}):
        raise UserError(f"{path}: it has several columns {twice[0]}; want each name once")
    key = next((name for name in KEYS if name in table.schema.names), None)
    if key is None:
        raise UserError(
            f"{path}: its columns are {', '.join(table.schema.names)[:200]}; want one of {', '.join(KEYS)} to match "
            "clips by"
        )
    given = table[key].to_pylist()
    place = {value: row for row, value in enumerate(given)}
    if len(place) < len(given):
        raise UserError(f"{path}: {counted(len(given) - len(place), 'row')} repeating a {key}; want one row a clip")
    rows = [place.get(value) for value in shards.clips["clip_id" if key == "clip_id" else "source"].to_pylist()]
    if all(row is None for row in rows):
        raise UserError(f"{path}: no {key} of its {len(given)} rows is of {shards.directory}; give a table of this set")
    own = {name: shards.clips[name].to_pylist() for name in ("source", "split", "key")}
    own |= {"path": own["source"], "label": _labels(shards)}
    made = list[Column]()
    for field in table.schema:
        if field.name == key or pa.types.is_nested(field.type):
            continue
        name = f"{field.name} ({path.stem})" if field.name in taken else field.name
        known = table[field.name].to_pylist()
        values = [None if row is None else known[row] for row in rows]
        if field.name in own and all(
            value in (None, "") or f"{value}" == f"{mine}" for value, mine in zip(values, own[field.name], strict=True)
        ):
            continue
        if pa.types.is_floating(field.type):
            numbers = np.array([math.nan if value is None else value for value in values], np.float32)
            numbers[~np.isfinite(numbers)] = math.nan
            made.append(Column(name, numbers))
        else:
            whole = pa.types.is_integer(field.type)
            made.append(categories(name, values if whole else [None if v is None else str(v) for v in values]))
    return [column for column in made if column.names or (column.names is None and np.isfinite(column.values).any())]


def own_pseudo_labels(encoder: str, shards: ShardSet) -> list[Column]:
    """The pseudo-labels of a run of stage 2 on this set, where `encoder` is one."""
    path = Path(encoder) / PSEUDO_LABELS
    if not path.is_file():
        return []
    recorded = read_description(Path(encoder))
    return columns_in(path, shards) if recorded and recorded["shards"] == shards.manifest.digest else []


def usual_clusters(clips: int) -> int:
    """K that is taken where none is given. Ours: the rule of thumb sqrt(N / 2), and no more than one can look at."""
    return max(2, min(MOST_CLUSTERS, round(math.sqrt(clips / 2))))


def clusters_of(unit: Tensor, k: int, label: Column | None) -> tuple[Column, list[dict[str, Any]]]:
    """(N, D) unit rows -> the cluster of each, and each cluster, the largest first: name, clips, central (the clips
    nearest to its mean direction), and by labels the commonest one and purity, its share of the labelled clips.

    Spherical k-means of the rows, the best of 3 starts, seed 0. Clusters are numbered by size. Raises UserError: more
    clusters than clips.
    """
    found = spherical_kmeans(
        unit, k, iterations=30, init="kmeans++", n_init=3, generator=torch.Generator().manual_seed(0), backend="torch"
    )
    order = torch.argsort(found.counts, descending=True, stable=True)
    order = order[found.counts[order] > 0]
    rank = torch.full((k,), -1)
    rank[order] = torch.arange(len(order))
    own, cosines = rank[found.assignments], (unit * found.centroids[found.assignments]).sum(dim=1)
    made = []
    for cluster in range(len(order)):
        rows = torch.nonzero(own == cluster)[:, 0]
        nearest = rows[torch.argsort(cosines[rows], descending=True, stable=True)[:CENTRAL]]
        entry: dict[str, Any] = {"name": str(cluster), "clips": len(rows), "central": nearest.tolist()}
        if label is not None and label.names is not None:
            codes = label.values[rows.numpy()]
            counts = np.bincount(codes[codes != NO_LABEL], minlength=len(label.names))
            if counts.sum():
                entry |= {"label": int(counts.argmax()), "purity": round(float(counts.max() / counts.sum()), 4)}
        made.append(entry)
    return Column("cluster", own.numpy().astype(np.int32), tuple(entry["name"] for entry in made)), made
