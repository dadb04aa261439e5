"""What the log says of an epoch's use of the device: operations counted by hand, shares of a limit and of time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.models.cost import operations
from unfused_fast.training.usage import Usage, in_words

FORWARD, BACKWARD = 2 * (4 * 8 * 8 * 9 + 4 * 8 * 8 * 5) * 2, 2 * (4 * 8 * 8 * 9 + 2 * 4 * 8 * 8 * 5) * 2
"""Of _network on two clips: the convolution's input needs no gradient, the linear layer's does."""


def _network() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(first, nn.Flatten(), nn.Linear(256, 5)).train()


def test_operations_by_hand() -> None:
    network, view = _network(), torch.zeros(2, 1, 8, 8)
    network[0].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert operations(network, (view,), backward=False) == FORWARD
    assert operations(network, (view,), backward=True) == FORWARD + BACKWARD
    assert network.training and not network[0].training and network[0][1].training is False
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert operations(network.requires_grad_(False), (view,), backward=True) == FORWARD


@pytest.mark.parametrize(
    ("name", "amp", "limit"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp32", None),
    ],
)
def test_share_of_a_gpus_limit(name: str, amp: str, limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3_000_000_000)
    usage = Usage(with_values(Config(), {"train.amp": amp}), torch.device("cuda"))
    network, now = _network(), 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    usage.ran(network, (torch.zeros(64, 1, 8, 8),))  # before the epoch
    usage.begin()
    for _ in range(2):
        usage.ran(network, (torch.zeros(2, 1, 8, 8),))
        with torch.no_grad():
            usage.ran(network, (torch.zeros(4, 1, 8, 8),))
    now += 1e-7
    used = usage.read({"load": 2e-8, "backward": 5e-8, "collectives": 0.5e-8})
    done = 2 * (FORWARD + BACKWARD) + 2 * 2 * FORWARD
    assert used["mfu"] == (None if limit is None else pytest.approx(done / (limit * 1e-7), abs=6e-5))
    assert used["memory_gb"] == 3.0
    assert (used["data_share"], used["collectives_share"]) == (pytest.approx(0.2), pytest.approx(0.05))
    assert in_words({**used, "mfu": 0.256}) == "  MFU 26%  20% waiting for data"
    assert in_words({"mfu": None, "collectives_share": 0.3}) == "  30% waiting for other ranks"


def test_a_run_that_waits_for_its_data_says_so(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = ResidentLoader.epoch

    def slow(self: ResidentLoader, *given: Any, **named: Any) -> Iterator[Any]:
        for batch in epoch(self, *given, **named):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(ResidentLoader, "epoch", slow)
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny, "--epochs", 2, "--data", "resident")
    assert done.code == 0 and "waiting for data" in done.err, done.err
    for row in map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines()):
        assert row["mfu"] is None and "collectives_share" not in row
        assert row["data_share"] == pytest.approx(row["parts"]["load"] / row["epoch_seconds"], abs=0.02)
        assert row["parts"]["load"] >= 0.8 and 0.1 < row["memory_gb"] < 100
