"""The memory bank: exact cover, generations on disk, damage found."""

from pathlib import Path

import pytest
import torch
import zarr

from unfused_fast.bank import MemoryBank
from unfused_fast.errors import UserError

CPU = torch.device("cpu")


def filled(clips: int = 10, dim: int = 4, first_id: int = 100) -> MemoryBank:
    bank = MemoryBank(clips, dim, first_id, CPU)
    bank.write(torch.arange(first_id, first_id + clips), torch.randn(clips, dim))
    return bank


def test_rows_belong_to_clip_ids() -> None:
    bank, rows = MemoryBank(6, 3, 100, CPU), torch.randn(6, 3)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    bank.write(100 + order[:4], rows[order[:4]])
    bank.write(100 + order[4:], rows[order[4:]])
    assert torch.equal(bank.rows, rows)
    bank.check_cover()


def test_a_clip_missed_or_written_twice_is_named() -> None:
    bank = filled()
    bank.start_epoch()
    bank.write(torch.tensor([100, 101, 101, 103, 104, 105, 106, 107, 108, 109]), torch.randn(10, 4))
    with pytest.raises(RuntimeError, match=r"2 of 10 clips .* 101 \(2 times\), 102 \(0 times\)"):
        bank.check_cover()


def test_generations_round_trip_and_only_two_stay(tmp_path: Path) -> None:
    bank, assignments = filled(), torch.arange(10) % 3
    saved = {}
    for epoch in (1, 2, 3):
        bank.write(torch.tensor([103]), torch.randn(1, 4))
        bank.save(tmp_path / "bank.zarr", epoch, assignments)
        saved[epoch] = bank.rows.clone()
    assert sorted(path.name for path in (tmp_path / "bank.zarr").iterdir()) == ["gen-000002", "gen-000003"]
    other = MemoryBank(10, 4, 100, CPU)
    assert torch.equal(other.load(tmp_path / "bank.zarr", 2), assignments)
    assert torch.equal(other.rows, saved[2])
    stored = zarr.open_group(tmp_path / "bank.zarr" / "gen-000003", mode="r")
    assert stored.metadata.zarr_format == 3 and stored["embeddings"].shape == (10, 4)


def test_damage_and_another_set_are_refused(tmp_path: Path) -> None:
    filled().save(tmp_path, 1, torch.zeros(10, dtype=torch.int64))
    with pytest.raises(UserError, match="another shard set"):
        MemoryBank(11, 4, 100, CPU).load(tmp_path, 1)
    with pytest.raises(UserError, match="missing"):
        MemoryBank(10, 4, 100, CPU).load(tmp_path, 2)
    chunk = next(
        path
        for path in (tmp_path / "gen-000001" / "embeddings").rglob("*")
        if path.is_file() and path.name != "zarr.json"
    )
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(UserError, match="digest"):
        MemoryBank(10, 4, 100, CPU).load(tmp_path, 1)
