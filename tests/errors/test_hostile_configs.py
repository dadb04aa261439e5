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


@pytest.mark.parametrize("case", FILES)
def test_results_that_are_none(cli: Cli, tmp_path: Path, case: str) -> None:
    (tmp_path / "result.json").write_text(FILES[case])
    for more in ([], ["--markdown"], ["--json"]):
        refused(cli("report", tmp_path, *more), tmp_path / "result.json")


RESULT = {
    "stage": "linear",
    "valid": 0.5,
    "test": 0.25,
    "macro_f1": {"test": 0.5},
    "clips": {"train": 3},
    "seconds": 1.0,
}
RESULTS: dict[str, list[Any]] = {
    "stage": [7, None, [], {"a": 1}],
    "valid": ["high", [], {"a": 1}, True],
    "test": ["high", [0.5]],
    "macro_f1": [0.5, [], "high", {"test": "high"}, {"valid": []}],
    "clips": [7, "many", ["train"], {"train": [1]}],
    "seconds": [None, "long", [], {}],
    "label_fraction": ["all", [1]],
    "seed": [[0], {"a": 1}],
    "task": [{"a": 1}, ["x"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RESULTS.items() for value in values])
def test_results_of_another_type(cli: Cli, tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "result.json").write_text(json.dumps({**RESULT, name: value}))
    for more in ([], ["--markdown"], ["--json"]):
        refused(cli("report", tmp_path, *more), tmp_path / "result.json", name)


def test_a_result_with_numbers_that_are_none_is_shown(cli: Cli, tmp_path: Path) -> None:
    result = {**RESULT, "valid": float("nan"), "test": None, "seconds": float("inf"), "more": {"deep": [1]}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    done = cli("report", tmp_path, "--markdown")
    assert done.code == 0 and "| linear |" in done.out and "nan" in done.out


def test_a_result_without_its_seconds(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"stage": "linear"}')
    refused(cli("report", tmp_path), tmp_path / "result.json", "seconds")
