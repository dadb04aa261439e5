"""Rows of a bank in blocks, from a tensor or from disk: whole, in place, ahead of who reads them, onto a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generations import DIM, content, written

from unfused_fast.bank_manifest import DamagedBank
from unfused_fast.bank_read import BankRows, Generation

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_blocks_are_the_rows_wherever_they_lie(tmp_path: Path) -> None:
    generation, (values, _) = written(tmp_path), content(100)
    for source in (torch.from_numpy(values), generation, Generation(generation)):
        rows = BankRows(source)
        assert rows.shape == (100, DIM) and rows.dtype == torch.float32 and len(rows) == 100
        assert np.array_equal(rows.block(3, 20), values[3:20]) and rows.block(5, 5).shape == (0, DIM)
        assert np.array_equal(rows.block(0, 100), values)
        with pytest.raises(IndexError):
            rows.block(90, 101)


def test_a_block_of_a_tensor_on_the_device_is_a_view(tmp_path: Path) -> None:
    values = torch.randn(100, DIM)
    block = BankRows(values).block(30, 60)
    assert block.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


def test_a_block_tells_of_damage(tmp_path: Path) -> None:
    generation = written(tmp_path)
    shard = generation / "embeddings/c/1/0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the index's CRC, which zarr checks
    shard.write_bytes(data)
    rows = BankRows(generation)
    cut = rows.source.manifest.shard_rows
    assert rows.block(0, cut).shape == (cut, DIM), "of another file"
    with pytest.raises(DamagedBank, match=r"(?i)crc|checksum"):
        rows.block(cut, cut + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["pinned", "pageable", "disk", "bf16"])
def test_blocks_reach_a_gpu_as_they_are(tmp_path: Path, where: str) -> None:
    values = torch.from_numpy(content(1009)[0])
    source = {
        "pinned": lambda: values.pin_memory(),
        "pageable": lambda: values,
        "disk": lambda: written(tmp_path, 1009),
        "bf16": lambda: values.bfloat16().pin_memory(),
    }[where]()
    rows = BankRows(source, torch.device("cuda"))
    blocks = [rows.block(start, min(start + 100, 1009)) for start in range(0, 1009, 100)]
    assert all(block.is_cuda for block in blocks)
    assert torch.equal(torch.cat(blocks).cpu(), values.to(rows.dtype))
