"""Rows of a generation in blocks, read when asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generations import DIM, content, written

from unfused_fast.clustering.bank_manifest import DamagedBank
from unfused_fast.clustering.bank_read import Generation

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_blocks_are_the_rows(tmp_path: Path) -> None:
    rows, (values, _) = Generation(written(tmp_path)), content(100)
    assert rows.dtype == torch.float32
    assert np.array_equal(rows.block(3, 20), values[3:20]) and rows.block(5, 5).shape == (0, DIM)
    assert np.array_equal(rows.block(0, 100), values)
    with pytest.raises(IndexError):
        rows.block(90, 101)


def test_a_block_tells_of_damage(tmp_path: Path) -> None:
    generation = written(tmp_path)
    shard = generation / "embeddings/c/1/0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the index's CRC, which zarr checks
    shard.write_bytes(data)
    rows = Generation(generation)
    cut = rows.manifest.shard_rows
    assert rows.block(0, cut).shape == (cut, DIM), "of another file"
    with pytest.raises(DamagedBank, match=r"(?i)crc|checksum"):
        rows.block(cut, cut + 1)
