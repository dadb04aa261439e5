"""`report`: one table of finished runs; a result that is none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, refused

RESULT = {
    "stage": "linear",
    "valid": float("nan"),
    "test": None,
    "macro_f1": {"test": 0.5},
    "clips": {"train": 3},
    "seconds": float("inf"),
    "more": {"deep": [1]},
}
OTHERS: dict[str, Any] = {"valid": "high", "macro_f1": [], "clips": 7, "seconds": None, "label_fraction": [1]}
FILES = ["", "[]", "[" * 100_000, '{"stage": "linear"}']
FILES += [json.dumps({**RESULT, name: value}) for name, value in OTHERS.items()]


def test_results_with_numbers_that_are_none_are_shown(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    done = cli("report", tmp_path, "--markdown")
    assert done.code == 0 and "| linear | - |" in done.out and "nan" in done.out and "| 0.500 | 3 |" in done.out


def test_the_method_of_a_run_of_stage_1_is_named(cli: Cli, pretrained: Path) -> None:
    (result,) = json.loads(cli("report", pretrained.parent, "--json").out)
    assert result["method"] == json.loads((pretrained / "config.json").read_text())["config"]["method.name"]
    assert "| pretrain | decar-v2 |" in cli("report", pretrained, "--markdown").out


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_what_is_no_result_is_named(cli: Cli, tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    for more in ([], ["--markdown"], ["--json"]):
        refused(cli("report", tmp_path, *more), tmp_path / "result.json", "run the stage again")
