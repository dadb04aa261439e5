"""Generations of a memory bank with known content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unfused_fast.clustering.bank_manifest import layout
from unfused_fast.clustering.bank_write import create_generation, publish, write_part

DIM = 8


def content(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (rows, DIM) and assignments (rows,)."""
    generator = np.random.default_rng(rows)
    return generator.standard_normal((rows, DIM), dtype=np.float32), generator.integers(0, 9, rows)


def written(directory: Path, rows: int = 100, ranks: int = 1, epoch: int = 1) -> Path:
    """A published generation of `content(rows)`, its parts written by `ranks` in any order."""
    values, ids = content(rows)
    cut = layout(rows, DIM, "float32", ranks)
    partial = create_generation(directory, epoch, cut)
    for rank in reversed(range(ranks)):  # in any order
        first, last = cut.part(rank)
        write_part(partial, cut, first, values[first:last], ids[first:last])
    return publish(partial, cut, epoch=epoch, step=5, first_clip_id=1000)
