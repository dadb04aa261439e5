"""Whether a run that was stopped, killed or told otherwise ends as the undisturbed one: bit for bit but for times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unfused_fast.clustering.bank_files import Generation

TIMES = {"seconds", "epoch_seconds", "start_seconds", "first_epoch_seconds", "cluster_seconds", "clips_per_second"}
TIMES |= {"mfu", "memory_gb", "data_share", "collectives_share"}


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """A result or a line of the log, without what takes its time, and without where it lies."""
    return {name: value for name, value in values.items() if name not in TIMES | {"parts", "run"}}


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, without times."""
    return [without_times(json.loads(line)) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs have the same newest checkpoint, bank, result and log."""
    newest = [sorted((run / "checkpoints").glob("epoch-??????.safetensors"))[-1] for run in (one, other)]
    assert newest[0].name == newest[1].name
    first, second = map(load_file, newest)
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    results = _same_results(one, other)
    assert log_of(one) == log_of(other)
    if (one / "bank.zarr").exists():
        banks = [Generation(run / "bank.zarr" / f"gen-{results[0]['last_epoch']:06d}") for run in (one, other)]
        assert torch.equal(banks[0].rows(), banks[1].rows())
        assert torch.equal(banks[0].assignments(), banks[1].assignments())


def assert_same_linear(one: Path, other: Path, heads_of: Callable[[Path], Path]) -> None:
    """Two finished runs of `train linear` have the same heads, as kept beside them, result, picture and files."""
    first, second = (load_file(heads_of(run)) for run in (one, other))
    assert set(first) == set(second)
    assert all(bool(first[name].any()) and torch.equal(first[name], second[name]) for name in first)
    _same_results(one, other)
    assert (one / "confusion.png").read_bytes() == (other / "confusion.png").read_bytes()
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


def _same_results(one: Path, other: Path) -> list[dict[str, Any]]:
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0].keys() == results[1].keys()
    assert without_times(results[0]) == without_times(results[1])
    return results
