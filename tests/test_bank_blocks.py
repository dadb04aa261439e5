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


@pytest.mark.parametrize("block_rows", [1, 7, 16, 100, 1000])
def test_blocks_are_the_rows_wherever_they_lie(tmp_path: Path, block_rows: int) -> None:
    generation, (values, _) = written(tmp_path), content(100)
    for source in (torch.from_numpy(values), generation, Generation(generation)):
        rows = BankRows(source)
        assert rows.shape == (100, DIM) and rows.dtype == torch.float32 and len(rows) == 100
        blocks = list(rows.blocks(block_rows))
        assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
        assert np.array_equal(torch.cat(blocks), values)
        assert np.array_equal(rows.block(3, 20), values[3:20]) and rows.block(5, 5).shape == (0, DIM)
        with pytest.raises(IndexError):
            rows.block(90, 101)
        with pytest.raises(ValueError, match="at least 1"):
            next(rows.blocks(0))


def test_blocks_of_a_tensor_on_the_device_are_views(tmp_path: Path) -> None:
    values = torch.randn(100, DIM)
    for block in BankRows(values).blocks(30):
        assert block.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


def test_blocks_may_be_left_early_and_tell_of_damage(tmp_path: Path) -> None:
    generation = written(tmp_path)
    blocks = BankRows(generation).blocks(10)
    next(blocks)
    blocks.close()
    shard = generation / "embeddings/c/1/0"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the index's CRC, which zarr checks
    shard.write_bytes(data)
    with pytest.raises(DamagedBank, match=r"(?i)crc|checksum"):
        list(BankRows(generation).blocks(10))


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
    rows, total = BankRows(source, torch.device("cuda")), []
    for block in rows.blocks(100):
        assert block.is_cuda
        total.append(block.clone())
    assert torch.equal(torch.cat(total).cpu(), values.to(rows.dtype))
