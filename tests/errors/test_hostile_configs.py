"""config.json and result.json of a stranger: one sentence, exit code 1, no traceback, little memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_runs import in_little_memory
from outcomes import Cli, refused

DEEP = 100_000
FILES: dict[str, str] = {
    "empty": "",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "not a number": "NaN",
    "deep": "[" * DEEP,
    "deep objects": '{"a":' * DEEP,
    "a number of 5000 digits": '{"seed": ' + "9" * 5000 + "}",
    "bytes": "\x00\x01\x02",
}


@pytest.fixture
def run(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """A finished run, to be spoilt."""
    return copy_of(pretrained)


@pytest.mark.parametrize("case", FILES)
def test_configs_that_are_none(linear: Cli, cli: Cli, tones: Path, run: Path, tmp_path: Path, case: str) -> None:
    (run / "config.json").write_text(FILES[case])
    for done in (linear(tones, run, tmp_path / "out"), cli("clusters", run)):
        refused(done, run / "config.json")


PARTS: dict[str, Any] = {
    "stage": [None, 7, ["pretrain"], {"pretrain": 1}],
    "config": [None, 7, "text", [], {}, [["model.dim", 32]]],
    "shards": [None, 7, ["digest"]],
    "inputs": [None, 7, "text"],
    "log_mel": [7, "text", [], {}, {"mean": 0.0}, {"mean": "0", "std": 1.0}, {"mean": 0.0, "std": 0.0},
                {"mean": float("nan"), "std": 1.0}, {"mean": 0.0, "std": float("inf")}, {"mean": 0.0, "std": 10**400}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PARTS.items() for value in values])
def test_parts_of_a_config_of_another_type(
    linear: Cli, tones: Path, run: Path, tmp_path: Path, name: str, value: Any
) -> None:
    recorded = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**recorded, name: value}))
    refused(linear(tones, run, tmp_path / "out"), run)
    assert not (tmp_path / "out").exists()


FIELDS: dict[str, list[Any]] = {
    "model.dim": [None, "wide", [32], {"a": 1}, -1, 0, 32.5, 1e999, 10**9, 10**30, "9" * 5000, float("nan")],
    "model.channels": [10**8, 10**18],
    "frontend.n_mels": [10**8, 10**18, 7],
    "model.encoder": ["__import__('os')", 7, ["audiontt"], None],
    "aug.rrc.freq_scale": [7, None, "1", [[1, 2], 3], [1, 2, 3], {"a": 1}],
    "eval.lr_grid": [None, 7, [[]], ["fast"]],
    "model.l2_normalize": [7, None, [], "perhaps"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_fields_of_a_config_of_another_type_or_size(
    linear: Cli, tones: Path, run: Path, tmp_path: Path, name: str, value: Any
) -> None:
    recorded = json.loads((run / "config.json").read_text())
    recorded["config"][name] = value
    (run / "config.json").write_text(json.dumps(recorded))
    with in_little_memory():
        refused(linear(tones, run, tmp_path / "out"), run)
