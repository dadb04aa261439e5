"""A training step: one graph for the compiler, no word between device and host, and what --profile says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import Stage, preset, with_values
from unfused_fast.models.audiontt import DistillNetwork, PretrainNetwork
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.distillation import Distillation
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.loop import Trainer
from unfused_fast.training.options import Options, prepare_for
from unfused_fast.training.run_directory import Run
from unfused_fast.training.run_together import train_loader

CPU = torch.device("cpu")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}
"""Operators of aten at which a host waits for its device."""


class Recorded(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        picked = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        if any(torch.is_tensor(index) and index.dtype == torch.bool for index in picked):
            self.names.add("nonzero")  # which rows a mask picks has to be known
        return function(*args, **(kwargs or {}))


def test_what_makes_a_host_wait_is_noticed() -> None:
    with Recorded() as seen:
        float(torch.ones(()))
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert {"_local_scalar_dense", "nonzero"} <= seen.names & WAITS


def _values(tiny: list[str]) -> dict[str, str]:
    return dict(item.split("=") for item in tiny if "=" in item)


@pytest.fixture
def trainer(tones: Path, tiny: list[str], tmp_path: Path) -> Callable[..., tuple[Trainer, list[Any]]]:
    """`trainer(stage, device, **values)`: at the first step of the first epoch, and the full batches of that epoch."""

    def make(stage: Stage, device: torch.device = CPU, **values: Any) -> tuple[Trainer, list[Any]]:
        options, shards = Options(device, compile=False), open_shards(tones)
        config = with_values(preset("recommended", stage), {**_values(tiny), **values})
        run = Run(tmp_path / stage, stage, config, shards, options)
        if stage == "pretrain":
            made = pretrainer(config, shards, options, run)[1]
        else:
            task = Distillation(config, shards.first_id("train"), torch.arange(60) % 3, 3)
            made = Trainer(task, train_loader(config, shards, options, 16, ()), config, options, run)
        made.begin_epoch(1)
        return made, list(made.batches(1))[:-1]

    return make


@pytest.mark.parametrize(
    ("stage", "values"), [("pretrain", {}), ("pretrain", {"model.prediction": "linear"}), ("distill", {})]
)
def test_a_step_never_waits(trainer: Callable[..., Any], stage: Stage, values: dict[str, Any]) -> None:
    made, batches = trainer(stage, **values)
    made.train_batch(batches[0], 1)  # momentum is made in the first step
    with Recorded() as seen:
        made.train_batch(batches[1], 1)
    assert "convolution_backward" in seen.names
    assert not seen.names & WAITS


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits(trainer: Callable[..., Any]) -> None:
    made, batches = trainer("pretrain", torch.device("cuda"))
    made.train_batch(batches[0], 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.train_batch(batches[1], 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("encoder", ["audiontt", "efficientnet_b0"])
@pytest.mark.parametrize("build", [PretrainNetwork, lambda config: DistillNetwork(config, 5)])
def test_a_network_is_one_graph_without_breaks(
    tiny: list[str], encoder: str, build: Callable[[Config], torch.nn.Module]
) -> None:
    values = {name: value for name, value in _values(tiny).items() if name.startswith("model.")}
    network = build(with_values(Config(), {**values, "model.encoder": encoder}))
    network = prepare_for(network, CPU).train()
    explained = torch._dynamo.explain(network)(torch.randn(8, 1, 64, 96))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_profile_names_parts_and_operators(cli: Any, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--epochs", 3, "--profile", "--data", "stream"]
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny, *flags)
    assert done.code == 0 and "--profile: wrote" in done.err
    folder = tmp_path / "run" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"forward train view", "backward", "optimizer", "aten::convolution"} <= names
    table = (folder / "operators.txt").read_text()
    assert "Self CPU %" in table and "convolution" in table
    short = cli("train", "pretrain", tones, "--out", tmp_path / "short", *tiny, "--epochs", 1, "--profile")
    assert short.code == 0
