"""Checkpoints: everything comes back, damage is found, what does not fit is listed."""

import json
from pathlib import Path

import pytest
import torch

from unfused_fast.errors import UserError
from unfused_fast.training.checkpoint import Position, collect, load_checkpoint, restore, save_checkpoint, write_json
from unfused_fast.training.optim import LARC


def trained(optimizer_type: type, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    optimizer = optimizer_type(network.parameters(), lr=0.1)
    step(network, optimizer)
    return network, optimizer


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network(torch.randn(6, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("optimizer_type", [LARC, torch.optim.SGD, torch.optim.AdamW])
def test_training_goes_on_bit_for_bit(tmp_path: Path, optimizer_type: type) -> None:
    network, optimizer = trained(optimizer_type, 0)
    save_checkpoint(tmp_path, Position(1), collect(network, optimizer), {"step": 7})
    other, other_optimizer = trained(optimizer_type, 1)
    tensors, state, damaged = load_checkpoint(tmp_path)
    restore(tensors, other, other_optimizer)
    assert state["step"] == 7 and not damaged
    after = torch.get_rng_state()
    for _ in range(3):
        step(other, other_optimizer)
    torch.set_rng_state(after)
    for _ in range(3):
        step(network, optimizer)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_only_the_last_two_stay_and_no_pickle(tmp_path: Path) -> None:
    network, _ = trained(LARC, 0)
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, Position(epoch), collect(network), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"epoch-{epoch:06d}.{kind}" for epoch in (2, 3) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "garbage json"])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    network, _ = trained(LARC, 0)
    for epoch in (1, 2):
        save_checkpoint(tmp_path, Position(epoch), collect(network), {})
    path = tmp_path / "epoch-000002.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{")
    _, state, damaged = load_checkpoint(tmp_path)
    assert state["epoch"] == 1 and len(damaged) == 1 and "epoch-000002" in damaged[0]


def test_what_a_checkpoint_refers_to_has_to_be_sound_too(tmp_path: Path) -> None:
    network, _ = trained(LARC, 0)
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, Position(epoch), collect(network), {})
    faults = {3: "bank 3 is damaged"}
    _, state, damaged = load_checkpoint(tmp_path, lambda state: faults.get(state["epoch"]))
    assert state["epoch"] == 2 and damaged == ["bank 3 is damaged"]
    with pytest.raises(UserError, match="no usable checkpoint: gone; gone; train again"):
        load_checkpoint(tmp_path, lambda state: "gone")


def test_what_is_kept_when_a_run_saves_within_epochs(tmp_path: Path) -> None:
    network, _ = trained(LARC, 0)

    def kept_after(epoch: int, batch: int) -> list[tuple[int, int]]:
        save_checkpoint(tmp_path, Position(epoch, batch), collect(network), {})
        states = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
        assert len(list(tmp_path.iterdir())) == 2 * len(states)
        return sorted((state["epoch"], state["batch"]) for state in states)

    assert kept_after(0, 5) == [(0, 5)]
    assert kept_after(1, 0) == [(0, 5), (1, 0)]
    assert kept_after(1, 5) == [(1, 0), (1, 5)]
    assert kept_after(1, 10) == [(1, 0), (1, 5), (1, 10)], "the last two, and the last end of an epoch"
    assert load_checkpoint(tmp_path)[1]["batch"] == 10
    assert kept_after(2, 0) == [(1, 10), (2, 0)]
    assert load_checkpoint(tmp_path)[1]["epoch"] == 2
    assert kept_after(1, 12) == [(1, 10), (1, 12)], "a run that went back: the later one was damaged"


def test_an_end_of_an_epoch_that_holds_the_bank_itself_is_no_whole_one(tmp_path: Path) -> None:
    """A stop in the pass that fills the bank: other commands cannot read its rows, so the one before has to stay."""
    network, _ = trained(LARC, 0)
    for position, bank in ((1, 0), "generation"), ((2, 0), "here"), ((2, 5), "here"), ((2, 10), "here"):
        save_checkpoint(tmp_path, Position(*position), collect(network), {"bank": bank})
    states = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted((state["epoch"], state["batch"]) for state in states) == [(1, 0), (2, 5), (2, 10)]


def test_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    network, _ = trained(LARC, 0)
    save_checkpoint(tmp_path, Position(1), collect(network), {})
    tensors, _, _ = load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"2.bias is .* want none; .* 3.bias is missing, want \(2,\) float32;"):
        other = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        )
        restore(tensors, other)
    with pytest.raises(UserError, match=r"0.weight is \(8, 4\) float32, want \(8, 5\) float32"):
        restore(tensors, torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)))


def test_nothing_usable_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        load_checkpoint(tmp_path)
    (tmp_path / "epoch-000001.json").write_text(json.dumps({"epoch": 1, "sha256": "0"}))
    with pytest.raises(UserError, match=r"epoch-000001\.safetensors is damaged"):
        load_checkpoint(tmp_path)


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    write_json(tmp_path / "a.json", {"epoch": 1})
    with pytest.raises(OSError):
        write_json(tmp_path / "folder.json", {"epoch": 2})
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "nothing/a.json", {"epoch": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"epoch": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder.json"]
