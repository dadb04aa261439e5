"""A training step: one graph for the compiler, no word between device and host, and what --profile says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import Recorded
from torch.utils.flop_counter import FlopCounterMode

from unfused_fast.config.presets import Stage, preset, with_values
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.distillation import Distillation
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.loop import Trainer
from unfused_fast.training.options import Options, train_loader
from unfused_fast.training.run_directory import Run

CPU = torch.device("cpu")
BESIDE = {"loss.instance": "simclr", "views.local": 1, "views.local_seconds": 0.5}


def test_what_makes_a_host_wait_is_noticed() -> None:
    with Recorded() as seen:
        float(torch.ones(()))
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert seen.waits == 2


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
    ("stage", "values"),
    [("pretrain", {}), ("pretrain", {"method.name": "decar-v1"}), ("pretrain", BESIDE), ("distill", {})],
)
def test_a_step_never_waits(trainer: Callable[..., Any], stage: Stage, values: dict[str, Any]) -> None:
    made, batches = trainer(stage, **values)
    made.train_batch(batches[0])  # momentum is made in the first step
    with Recorded() as seen:
        made.train_batch(batches[1])
    assert "convolution_backward" in seen.names
    assert not seen.waits


def test_a_pass_over_the_clips_takes_the_compiled_network(trainer: Callable[..., Any]) -> None:
    made, _ = trainer("pretrain")
    network, seen = made.task.network, list[int]()
    made._compiled = lambda view: (seen.append(len(view)), network(view))[1]
    made.task._fill_bank(made._passes)
    assert seen == [16, 16, 16], "the last 12 clips get no graph of their own"


def test_crops_of_a_pass_have_the_running_norm_as_it_is(trainer: Callable[..., Any]) -> None:
    made, _ = trainer("pretrain", **{"data.norm": "running"})
    norm, views = made.augment.norm, list[list[torch.Tensor]]()
    for moments in ([0.0, 0.0, 0.0], [10.0, 20.0, 80.0]):  # nothing seen; mean 2 and standard deviation 2
        norm.moments = torch.tensor(moments, dtype=torch.float64)
        views.append([view for _, view in made._passes(False)])
        assert norm.moments.tolist() == moments
    for plain, normed in zip(*views, strict=True):
        assert torch.equal(normed, (plain - 2) / 2)


@pytest.mark.parametrize(("views", "most"), [("training", 50), ("separate", 52)])
def test_data_of_a_step_is_few_operators(trainer: Callable[..., Any], views: str, most: int) -> None:
    """Gather, masks, mixup and resize crop, of one view and of two; the last two are a kernel each on a GPU."""
    made, _ = trainer("pretrain", **{"bank.view": views, "data.store": "resident"})
    made.start()
    made.augment.augmented = lambda crops, *drawn: crops
    batches = made.batches(1)
    next(batches)  # what an epoch draws is drawn here
    with Recorded() as seen:
        batch = next(batches)
        made.augment(batch.clip_ids, batch.views, batch.draws)
    assert {"bucketize", "logical_not", "index_put_"} <= seen.names and not seen.waits
    assert len(batch.views) == (1 if views == "training" else 2) and seen.launches <= most


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits(trainer: Callable[..., Any]) -> None:
    made, batches = trainer("pretrain", torch.device("cuda"))
    made.train_batch(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.train_batch(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert min(made.timer.read()[part] for part in ("forward train view", "backward", "optimizer")) > 0


def test_profile_names_parts_and_operators(cli: Any, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--epochs", 3, "--profile", "--data", "stream"]
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny, *flags)
    assert done.code == 0 and "--profile: wrote" in done.err
    folder = tmp_path / "run" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"forward train view", "backward", "optimizer", "aten::convolution"} <= names
    table = (folder / "operators.txt").read_text()
    assert "Self CPU %" in table and "aten::" in table  # which are slowest a busy machine decides
    short = cli("train", "pretrain", tones, "--out", tmp_path / "short", *tiny, "--epochs", 1, "--profile")
    assert short.code == 0


def test_operations_of_a_step_are_counted(trainer: Callable[..., Any]) -> None:
    made, batches = trainer("pretrain", **{"bank.view": "separate"})
    made.usage._limit = 1.0
    made.task.loss(batches[0].views, batches[0].clip_ids)  # counts each kind of pass
    made.usage.begin()
    with FlopCounterMode(display=False) as counter:
        made.task.loss(batches[1].views, batches[1].clip_ids).backward()
    head = 2 * 2 * 16 * made.config.model.proj_dim * made.task.k  # frozen prototypes: forward, and back to projections
    assert counter.get_total_flops() == made.usage._operations + head
