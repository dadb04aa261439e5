"""Checkpoints of a stranger, whose digests hold: one sentence, exit code 1, nothing executed, little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_runs import header, in_little_memory, only_checkpoint, pickled, tensor, torch_file
from outcomes import Cli, refused
from safetensors.torch import load, save

DEEP = 100_000


@pytest.fixture
def run(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """A finished run, to be spoilt."""
    return copy_of(pretrained)


BYTES: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda whole, sign: b"",
    "cut in the data": lambda whole, sign: whole[: len(whole) // 2],
    "header of 2 ** 63 bytes": lambda whole, sign: header({}, length=2**63),
    "deep": lambda whole, sign: header("[" * DEEP),
    "overlapping": lambda whole, sign: header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
    "a pickle": lambda whole, sign: pickled(sign),
    "what torch.save writes": lambda whole, sign: torch_file(sign),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_tensors(linear: Cli, tones: Path, run: Path, tmp_path: Path, case: str) -> None:
    sign, whole = tmp_path / "executed", (run / "checkpoints/epoch-000002.safetensors").read_bytes()
    path = only_checkpoint(run, BYTES[case](whole, sign))
    with in_little_memory():
        refused(linear(tones, run, tmp_path / "out"), run, path.name)
    assert not sign.exists() and not (tmp_path / "out").exists()


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    """Or the tests above could not fail."""
    import pickle

    pickle.loads(pickled(tmp_path / "executed")).close()
    assert (tmp_path / "executed").exists()


Tensors = dict[str, torch.Tensor]
FIRST = "model.encoder.convolutions.0.0.weight"
TENSORS: dict[str, Callable[[Tensors], Any]] = {
    "none at all": lambda tensors: tensors.clear(),
    "foreign names": lambda tensors: tensors.update({f"model.{name}": tensors[name].clone() for name in list(tensors)}),
    "another shape": lambda tensors: tensors.update({FIRST: torch.zeros(4, 1, 3, 5)}),
    "whole numbers": lambda tensors: tensors.update({FIRST: torch.zeros(4, 1, 3, 3, dtype=torch.int64)}),
    "no numbers": lambda tensors: tensors.update({FIRST: torch.full((4, 1, 3, 3), torch.nan)}),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_something_else(linear: Cli, tones: Path, run: Path, tmp_path: Path, case: str) -> None:
    tensors = load((run / "checkpoints/epoch-000002.safetensors").read_bytes())
    TENSORS[case](tensors)
    only_checkpoint(run, save(tensors))
    refused(linear(tones, run, tmp_path / "out"), run, "not finite" if case == "no numbers" else "does not fit")


RESUMED: dict[str, Callable[[Tensors], Any]] = {
    "no generator": lambda tensors: tensors.pop("rng.cpu"),
    "a generator of another type": lambda tensors: tensors.update({"rng.cpu": torch.zeros(5056)}),
    "no mixup memory": lambda tensors: tensors.pop("mixup.crops"),
    "no prototypes": lambda tensors: tensors.pop("heads.0.prototypes"),
    "momentum of another shape": lambda tensors: tensors.update(
        {FIRST.replace("model", "optim") + ".momentum_buffer": torch.zeros(9)}
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_cannot_be_resumed(pretrain: Cli, tones: Path, unfinished: Path, case: str) -> None:
    tensors = load((unfinished / "checkpoints/epoch-000002.safetensors").read_bytes())
    RESUMED[case](tensors)
    only_checkpoint(unfinished, save(tensors), {"epoch": 2})
    refused(pretrain(tones, unfinished, "--resume"), "the checkpoint does not fit this config")


STATES: dict[str, Any] = {
    "a list": "[]",
    "deep": "[" * DEEP,
    "a number of 5000 digits": '{"epoch": ' + "9" * 5000 + "}",
    "a digest that is a list": {"sha256": ["a"]},
    "an epoch elsewhere": {"epoch": "../../../../tmp/x"},
    "no epoch": {"epoch": None},
    "a step below 0": {"step": -1},
    "a count of 30 digits": {"k": 10**30},
    "scores that are no list": {"nmis": 5},
    "scores that are no numbers": {"nmis": [{}]},
    "seconds that are no number": {"seconds": "many"},
}


@pytest.mark.parametrize("case", STATES)
def test_states_that_are_none(pretrain: Cli, tones: Path, unfinished: Path, case: str) -> None:
    path = only_checkpoint(unfinished, (unfinished / "checkpoints/epoch-000002.safetensors").read_bytes(), STATES[case])
    with in_little_memory():
        refused(pretrain(tones, unfinished, "--resume"), "no usable checkpoint", path.stem, "train again")
