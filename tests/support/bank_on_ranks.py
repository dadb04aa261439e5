"""A memory bank of which each rank holds its own rows, against one process that holds all; run by ranks.py.

Each job in a folder first loads what the one before it saved, on whichever number of ranks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from unfused_fast.clustering import bank_files
from unfused_fast.clustering.assign import cluster_rows
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_files import DamagedBank, Generation
from unfused_fast.clustering.pca import pca_whiten, row_spread
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.unreadable import fill_left_out
from unfused_fast.distributed import ranks as ranks_module
from unfused_fast.distributed.ranks import Ranks
from unfused_fast.errors import UserError

CLIPS, DIM, FIRST = 203, 12, 100
LEFT_OUT = [100, *range(140, 171), 302]
"""The first clip, the last, and those of a truncated shard: at several ranks, and with stand-ins of other ranks."""


def content(epoch: int) -> torch.Tensor:
    """(N, D) rows in three directions, so that clusters are the same however sums are rounded."""
    generator = torch.Generator().manual_seed(epoch)
    centres = 4 * torch.eye(3, DIM)[torch.arange(CLIPS) % 3]
    return normalize(centres + torch.randn(CLIPS, DIM, generator=generator), dim=1)


def bank_of(ranks: Ranks, left_out: list[int], dtype: str = "fp32") -> MemoryBank:
    return MemoryBank(CLIPS, DIM, FIRST, torch.device("cpu"), dtype, ranks, left_out)  # type: ignore[arg-type]


def write(bank: MemoryBank, rows: torch.Tensor, without: list[int]) -> None:
    """Own clips, but those that are `without`, in two batches."""
    bank.start_epoch()
    ids = [row + FIRST for row in range(bank.own.start, bank.own.stop) if row + FIRST not in without]
    for part in (ids[::2], ids[1::2]):
        bank.write(torch.tensor(part, dtype=torch.int64), rows[torch.tensor(part, dtype=torch.int64) - FIRST])


def check_bank(ranks: Ranks, folder: Path) -> None:
    """Everything that a bank does, on these ranks."""
    bank_files.CHUNK_BYTES, ranks_module.BLOCK_BYTES = 1000, 300  # 20 rows in a file, 6 in a message
    rows, own = content(ranks.world_size), bank_of(ranks, []).own
    assert own == slice(ranks.rank * CLIPS // ranks.world_size, (ranks.rank + 1) * CLIPS // ranks.world_size)
    _rows_of_others(ranks, rows, folder)
    _what_was_not_written(ranks, rows)
    _stand_ins(ranks, rows)
    _clusters(ranks, rows)


def _rows_of_others(ranks: Ranks, rows: torch.Tensor, folder: Path) -> None:
    """Generations and checkpoints hold all rows, and each rank gets its own back; no rank has room for more."""
    before = sorted(int(path.name[4:]) for path in folder.glob("gen-??????"))
    ranks.barrier()
    number = before[-1] + 1 if before else 1
    for dtype, where in (("fp32", folder), ("bf16", folder / "bf16")):
        bank, kind = bank_of(ranks, [], dtype), torch.float32 if dtype == "fp32" else torch.bfloat16
        assert bank.rows.shape == (bank.own.stop - bank.own.start, DIM) == (len(bank.writes), DIM)
        if dtype == "fp32" and before:
            if ranks.leads:
                assert torch.equal(bank.load(folder, before[-1]), torch.arange(CLIPS) % 5)
            bank.load_others(folder, before[-1])
            wanted = content(int(load_file(folder / "seed")["seed"]))
            assert torch.equal(bank.rows, wanted[bank.own]), "of a run on another number of ranks"
        write(bank, rows, [])
        bank.check_cover()
        bank.writes[:1] = 7
        save, copies = bank.snapshot(where, number, torch.arange(CLIPS) % 5), None
        tensors = bank.tensors(torch.arange(CLIPS) % 5)
        bank.rows.zero_()
        if ranks.leads:
            assert torch.equal(Generation(save()).rows(), rows.to(kind))
            copies = {name: value.clone() for name, value in tensors().items()}
            assert torch.equal(copies["bank.rows"], rows.to(kind)) and set(copies["bank.writes"].tolist()) == {1, 7}
            spoilt = {**copies, "bank.rows": copies["bank.rows"][1:]}
        else:
            assert bank._host == {}, "rank 0 alone holds the copy"
        with pytest.raises(UserError, match=r"does not fit this config: (bank\.rows is|missing)"):
            bank.load_tensors(spoilt if ranks.leads else {})
        bank.load_tensors(copies or {})
        assert torch.equal(bank.rows, rows[bank.own].to(kind)) and bank.writes[:2].tolist() == [7, 1]
    if ranks.leads:
        with pytest.raises(DamagedBank, match="missing"):
            bank.load(where, number + 1)
        save_file({"seed": torch.tensor(ranks.world_size)}, folder / "seed")
    ranks.barrier()


def _what_was_not_written(ranks: Ranks, rows: torch.Tensor) -> None:
    """Every rank names the clips of all."""
    bank = bank_of(ranks, [])
    write(bank, rows, [FIRST, FIRST + CLIPS - 1])
    with pytest.raises(RuntimeError, match=r"2 of 203 clips .* once this epoch: 100 \(0 times\), 302 \(0 times\)"):
        bank.check_cover()
    if ranks.together:
        with pytest.raises((RuntimeError, IndexError)):
            bank.write(torch.tensor([FIRST + (CLIPS - 1 if ranks.leads else 0)]), rows[:1])


def _stand_ins(ranks: Ranks, rows: torch.Tensor) -> None:
    bank, wanted = bank_of(ranks, LEFT_OUT), rows.clone()
    fill_left_out(wanted, LEFT_OUT, FIRST)
    write(bank, rows, LEFT_OUT)
    bank.fill_left_out()
    bank.check_cover()
    assert torch.equal(bank.rows, wanted[bank.own])


def _clusters(ranks: Ranks, rows: torch.Tensor) -> None:
    """Measures and clusterings of all rows, from the rows of each."""
    own = bank_of(ranks, []).own
    for found, wanted in zip(row_spread(rows[own], ranks), row_spread(rows), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
    for few in (CLIPS, DIM - 2):  # the second by an SVD of all rows
        part = slice(min(own.start, few), min(own.stop, few))
        torch.testing.assert_close(pca_whiten(rows[part], 5, ranks=ranks), pca_whiten(rows[:few], 5)[part])
    for algo in ("spherical", "pca_kmeans", "pic"):
        linear = {"cluster.pca_dim": 4, "method.name": "decar-v1"}
        own_values = {"cluster.init": "warm"} if algo == "spherical" else linear
        config = with_values(Config(), {"cluster.algo": algo, **own_values})
        one = cluster_rows(rows, 5, config, seed=3)
        several = cluster_rows(rows[own], 5, config, seed=3, ranks=ranks)
        assert torch.equal(several.assignments, one.assignments) and torch.equal(several.counts, one.counts)
        if algo == "spherical":
            assert one.prototypes is not None and several.prototypes is not None
            assert torch.equal(several.prototypes, one.prototypes), "sums are exact"
            more = [
                cluster_rows(rows[part], 5, config, 4, one.prototypes, one.assignments, of)
                for part, of in ((slice(CLIPS), ranks_module.ALONE), (own, ranks))
            ]
            assert torch.equal(more[0].assignments, more[1].assignments)
