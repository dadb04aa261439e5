"""The memory bank on the device: exact cover, rows by clip id, saving beside training, loading only what fits."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from unfused_fast.clustering import bank_files
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_files import DamagedBank, open_bank
from unfused_fast.errors import UserError
from unfused_fast.training import checkpoint

CPU = torch.device("cpu")
IDS = torch.arange(10) % 3


def filled(clips: int = 10, dim: int = 4, first_id: int = 100, dtype: str = "fp32") -> MemoryBank:
    bank = MemoryBank(clips, dim, first_id, CPU, dtype)
    bank.write(torch.arange(first_id, first_id + clips), torch.randn(clips, dim))
    return bank


def rows_of(directory: Path, epoch: int | None = None) -> torch.Tensor:
    return open_bank(directory, epoch).rows()


def test_a_clip_missed_or_written_twice_is_named() -> None:
    bank = filled()
    bank.start_epoch()
    bank.write(torch.tensor([100, 101, 101, 103, 104, 105, 106, 107, 108, 109]), torch.randn(10, 4))
    with pytest.raises(RuntimeError, match=r"2 of 10 clips .* 101 \(2 times\), 102 \(0 times\)"):
        bank.check_cover()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_generations_round_trip_bit_for_bit_and_as_many_stay_as_checkpoints(tmp_path: Path, dtype: str) -> None:
    bank, saved = filled(dtype=dtype), {}
    odd = torch.tensor([[-0.0, 0.0, 1e-40, float("nan")], [float("inf"), -float("inf"), 1 / 3, 3.4e38]])
    seen: list[list[str]] = []
    for epoch in (1, 2, 3):
        bank.write(torch.tensor([103, 107]), odd if epoch == 2 else torch.zeros(2, 4))
        there = lambda: seen.append(sorted(path.name for path in tmp_path.iterdir()))  # noqa: E731
        write, saved[epoch] = bank.snapshot(tmp_path, epoch, IDS, step=7 * epoch, then=there), bank.rows.clone()
        bank.write(torch.arange(100, 110), torch.full((10, 4), 9.0))  # of the next epoch
        final = write()
    assert final == tmp_path / "gen-000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gen-000002", "gen-000003"]
    assert [len(names) for names in seen] == [1, 2, 3], "none is deleted before what refers to the next is written"
    assert checkpoint.KEPT == bank_files.GENERATIONS_KEPT
    other = MemoryBank(10, 4, 100, CPU, dtype)
    for epoch in (2, 3):
        assert torch.equal(other.load(tmp_path, epoch), IDS)
        bits = torch.int32 if dtype == "fp32" else torch.int16
        assert torch.equal(other.rows.view(bits), saved[epoch].view(bits))
    manifest = open_bank(tmp_path, 2).manifest
    assert (manifest.epoch, manifest.step, manifest.first_clip_id, manifest.norms["not_finite"]) == (2, 14, 100, 2)


def test_files_that_a_reader_holds_do_not_stop_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file that is open elsewhere stays under another name and cannot be deleted."""
    real, bank = os.unlink, filled()

    def unlink(path: str, **options: Any) -> None:
        if Path(path).name.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        for epoch in (1, 2, 3, 3, 3, 4):  # also as after going back to an earlier epoch
            kept = bank.snapshot(tmp_path, epoch, IDS)()
            (tmp_path / f"gen-{epoch:06d}/embeddings/.nfs01").touch()
        assert kept == tmp_path / "gen-000004"
        assert sorted(path.name for path in tmp_path.glob("gen-??????")) == ["gen-000003", "gen-000004"]
        assert list(tmp_path.glob("tmp-*")), "what stays is no generation"
    bank.snapshot(tmp_path, 5, IDS)()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gen-000004", "gen-000005"]


def test_a_run_that_went_back_keeps_the_generation_before_its_last(tmp_path: Path) -> None:
    bank = filled()
    for epoch in (4, 6, 5):
        bank.snapshot(tmp_path, epoch, IDS, step=epoch)()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gen-000004", "gen-000005"]


def test_a_failed_save_leaves_the_generation_before_it(tmp_path: Path) -> None:
    """Here the checkpoint's; a full disk is in test_bank_files.py."""
    bank = filled()
    bank.snapshot(tmp_path, 1, IDS)()
    before = bank.rows.clone()

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bank.write(torch.tensor([100]), torch.ones(1, 4))
    with pytest.raises(UserError, match=r"gen-000002: .* could not be written \(No space left on device\)"):
        bank.snapshot(tmp_path, 2, IDS, then=full)()
    assert torch.equal(rows_of(tmp_path, 1), before) and not list(tmp_path.glob("tmp-*"))
    bank.snapshot(tmp_path, 3, IDS)()
    assert torch.equal(rows_of(tmp_path), bank.rows)


def test_only_what_fits_is_loaded(tmp_path: Path) -> None:
    filled().snapshot(tmp_path, 1, IDS)()
    for other in ((11, 4, 100, "fp32"), (10, 5, 100, "fp32"), (10, 4, 99, "fp32"), (10, 4, 100, "bf16")):
        clips, dim, first_id, dtype = other
        with pytest.raises(DamagedBank, match=r"epoch 1, 10 x 4 float32 from clip 100 on, but this run needs epoch 1"):
            MemoryBank(clips, dim, first_id, CPU, dtype).load(tmp_path, 1)
    with pytest.raises(DamagedBank, match="missing"):
        MemoryBank(10, 4, 100, CPU).load(tmp_path, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_leave_a_gpu_through_pinned_memory_as_they_were(tmp_path: Path, dtype: str) -> None:
    cuda = torch.device("cuda")
    bank = MemoryBank(50_000, 128, 0, cuda, dtype)
    ids = torch.arange(50_000, device=cuda)
    for epoch in (1, 2):
        bank.write(ids, torch.randn(50_000, 128, device=cuda))
        before = bank.rows.clone()
        write = bank.snapshot(tmp_path, epoch, ids)
        bank.write(ids, torch.zeros(50_000, 128, device=cuda))
        write()
    assert all(copy.is_pinned() for copy in bank._host.values()) and len(bank._host) == 2
    other = MemoryBank(50_000, 128, 0, cuda, dtype)
    assert torch.equal(other.load(tmp_path, 2), ids) and torch.equal(other.rows, before)
