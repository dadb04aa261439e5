"""Checkpoints of a stranger, whose digests hold: one sentence, exit code 1, nothing executed, little memory."""

from __future__ import annotations

import json
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
    "cut in the header": lambda whole, sign: whole[:200],
    "cut in the data": lambda whole, sign: whole[: len(whole) // 2],
    "longer than its header says": lambda whole, sign: whole + bytes(64),
    "header of 2 ** 63 bytes": lambda whole, sign: header({}, length=2**63),
    "header of 99 MB that is not there": lambda whole, sign: header({}, length=99_000_000),
    "no JSON": lambda whole, sign: header("{never closed"),
    "deep": lambda whole, sign: header("[" * DEEP),
    "overlapping": lambda whole, sign: header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
    "2 ** 60 numbers": lambda whole, sign: header({"a": tensor([2**60], 0, 16)}, bytes(16)),
    "an unknown type": lambda whole, sign: header({"a": tensor([4], 0, 16, "OBJECT")}, bytes(16)),
    "one name twice": lambda whole, sign: header(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "a pickle": lambda whole, sign: pickled(sign),
    "what torch.save writes": lambda whole, sign: torch_file(sign),
    "a pickle behind a header": lambda whole, sign: header({"__metadata__": {"a": "b"}}, pickled(sign)),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_tensors(linear: Cli, tones: Path, run: Path, tmp_path: Path, case: str) -> None:
    sign, whole = tmp_path / "executed", (run / "checkpoints/epoch-000002.safetensors").read_bytes()
    path = only_checkpoint(run, BYTES[case](whole, sign))
    with in_little_memory():
        refused(linear(tones, run, tmp_path / "out"), run, path.name if case != "one name twice" else "")
    assert not sign.exists() and not (tmp_path / "out").exists()


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    """Or the tests above could not fail."""
    import pickle

    pickle.loads(pickled(tmp_path / "executed")).close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("at", [0, 8, 40, 0.5, 0.99])
def test_a_flipped_bit_with_the_old_digest(linear: Cli, tones: Path, run: Path, tmp_path: Path, at: float) -> None:
    whole = bytearray((run / "checkpoints/epoch-000002.safetensors").read_bytes())
    digest = json.loads((run / "checkpoints/epoch-000002.json").read_text())["sha256"]
    whole[int(at * len(whole)) if at < 1 else int(at)] ^= 1
    path = only_checkpoint(run, bytes(whole), {"sha256": digest})
    refused(linear(tones, run, tmp_path / "out"), path, "its digest does not match")


Tensors = dict[str, torch.Tensor]
FIRST = "model.encoder.convolutions.0.0.weight"
TENSORS: dict[str, Callable[[Tensors], Any]] = {
    "none at all": lambda tensors: tensors.clear(),
    "foreign names": lambda tensors: tensors.update({f"model.{name}": tensors[name].clone() for name in list(tensors)}),
    "one lacks": lambda tensors: tensors.pop(FIRST),
    "another shape": lambda tensors: tensors.update({FIRST: torch.zeros(4, 1, 3, 5)}),
    "a number for a layer": lambda tensors: tensors.update({FIRST: torch.zeros(())}),
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
    "a generator of another size": lambda tensors: tensors.update({"rng.cpu": torch.zeros(7, dtype=torch.uint8)}),
    "a generator of another type": lambda tensors: tensors.update({"rng.cpu": torch.zeros(5056)}),
    "no mixup memory": lambda tensors: tensors.pop("mixup.crops"),
    "a mixup memory of another shape": lambda tensors: tensors.update({"mixup.crops": torch.zeros(3, 2, 1, 1)}),
    "no prototypes": lambda tensors: tensors.pop("heads.0.prototypes"),
    "prototypes of another width": lambda tensors: tensors.update({"heads.0.prototypes": torch.zeros(4, 3)}),
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
    "not a number": "NaN",
    "a number of 5000 digits": '{"epoch": ' + "9" * 5000 + "}",
    "no UTF-8": "\udcff",
    "a digest that is a list": {"sha256": ["a"]},
    "an epoch elsewhere": {"epoch": "../../../../tmp/x"},
    "no epoch": {"epoch": None},
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.parametrize("command", ["linear", "clusters", "resume"])
def test_states_that_are_none(
    linear: Cli, pretrain: Cli, cli: Cli, tones: Path, unfinished: Path, tmp_path: Path, case: str, command: str
) -> None:
    whole = (unfinished / "checkpoints/epoch-000002.safetensors").read_bytes()
    if case == "no UTF-8":
        path = only_checkpoint(unfinished, whole)
        path.with_suffix(".json").write_bytes(b"\xff\xfe{}")
    else:
        path = only_checkpoint(unfinished, whole, STATES[case])
    commands = {
        "linear": lambda: linear(tones, unfinished, tmp_path / "out"),
        "clusters": lambda: cli("clusters", unfinished),
        "resume": lambda: pretrain(tones, unfinished, "--resume"),
    }
    with in_little_memory():
        refused(commands[command](), "no usable checkpoint", path.stem)


@pytest.mark.parametrize(
    "value",
    [
        {"step": "many"},
        {"step": -1},
        {"k": [4]},
        {"k": 10**30},
        {"nmis": "high"},
        {"nmis": [{}]},
    ],
)
def test_states_that_a_run_cannot_go_on_from(
    pretrain: Cli, tones: Path, unfinished: Path, value: dict[str, Any]
) -> None:
    whole = (unfinished / "checkpoints/epoch-000002.safetensors").read_bytes()
    only_checkpoint(unfinished, whole, value)
    refused(pretrain(tones, unfinished, "--resume"), "epoch-000002.json is not what was written", "train again")
