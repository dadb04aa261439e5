"""Which checkpoints are kept."""

import json
from pathlib import Path

import pytest
import torch

from unfused_fast.training.checkpoint import Position, save_checkpoint


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        ([(1, 0), (2, 0), (3, 0)], [(2, 0), (3, 0)]),
        ([(0, 5), (1, 0), (1, 5)], [(1, 0), (1, 5)]),
        # the last two, and the last end of an epoch
        ([(0, 5), (1, 0), (1, 5), (1, 10)], [(1, 0), (1, 5), (1, 10)]),
        # a run that went back: the later one was damaged
        ([(1, 10), (2, 0), (1, 12)], [(1, 10), (1, 12)]),
        # a stop in the pass that fills the bank: other commands cannot read its rows, so the one before has to stay
        ([(1, 0), (2, 0, "here"), (2, 5, "here"), (2, 10, "here")], [(1, 0), (2, 5), (2, 10)]),
    ],
)
def test_what_is_kept(tmp_path: Path, saved: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
    for epoch, batch, *bank in saved:
        notes = {"bank": bank[0]} if bank else {}
        save_checkpoint(tmp_path, Position(epoch, batch), {"a": torch.zeros(1)}, notes)
    states = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted((state["epoch"], state["batch"]) for state in states) == kept
    assert len(list(tmp_path.iterdir())) == 2 * len(kept)


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff"])
def test_a_damaged_one_before_it_stops_no_save(tmp_path: Path, damage: bytes) -> None:
    for epoch in (1, 2, 3, 4):
        save_checkpoint(tmp_path, Position(epoch, 0), {"a": torch.zeros(1)}, {})
        if epoch == 1:
            (tmp_path / "epoch-000001.json").write_bytes(damage)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["epoch-000003.json", "epoch-000004.json"]
