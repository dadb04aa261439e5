"""--compile-mode with CUDA graphs: what a step leaves behind, as far as that shows without a GPU, and with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_kinds import sets
from same_runs import assert_same_run, log_of
from torch.utils._pytree import tree_leaves

import unfused_fast.training.loop
from unfused_fast.config.presets import Stage
from unfused_fast.training.options import Options

DECAR_V1 = (
    "model.encoder=audiontt frontend.kind=byola model.pool=maxmean cluster.algo=pca_kmeans data.sampler=every_clip "
    "data.crop_seconds=0.95 train.patience=0 cluster.k=4"
)


class Graphs:
    """What CUDA graphs do to the outputs of a network: they last until the next step begins; gradients lie in that
    memory too. Source: can_start_new_generation and dealloc_current_path_weakrefs of torch._inductor.cudagraph_trees.
    """

    def __init__(self) -> None:
        self.outputs, self.networks, self.steps = list[torch.Tensor](), list[torch.nn.Module](), 0

    def compiled(self, network: torch.nn.Module, options: Options) -> Callable[..., Any]:
        self.networks.append(network)

        def replay(*inputs: torch.Tensor) -> Any:
            made = network(*inputs)
            self.outputs += [leaf for leaf in tree_leaves(made) if leaf is not None]
            return made

        return replay

    def begin_step(self) -> None:
        assert all(one.grad is None for network in self.networks for one in network.parameters())
        for output in self.outputs:
            output.data.fill_(torch.nan)
        self.steps, self.outputs = self.steps + bool(self.outputs), []


@pytest.mark.parametrize(
    ("stage", "flags", "steps"),
    [
        # two epochs of three steps; a pass of three batches before the first, or before each
        ("pretrain", ["--set", "train.accumulate=2", "--set", "bank.view=separate"], 3 + 2 * 3),
        ("pretrain", ["--set", "bank.view=training"], 3 + 2 * 3),
        ("pretrain", ["--method", "decar-v1", *sets(DECAR_V1)], 2 * (3 + 3)),
        ("pretrain", ["--method", "simclr", *sets("optim.lr=0.01")], 2 * 3),
        ("pretrain", ["--method", "moco", *sets("optim.lr=0.01 method.queue=40 train.accumulate=2")], 2 * 3),
        ("pretrain", ["--method", "byol", *sets("optim.lr=0.01")], 2 * 3),
        ("distill", [], 2 * 3),
    ],
)
def test_nothing_of_a_step_in_cuda_graphs_is_read_after_it(
    cli: Any, tones: Path, pretrained: Path, tiny_any: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stage: Stage, flags: list[str], steps: int
) -> None:  # fmt: skip
    teacher = ["--teacher", pretrained] if stage == "distill" else []

    def train(name: str) -> None:
        done = cli("train", stage, tones, *teacher, "--out", tmp_path / name, "--epochs", 2, *tiny_any, *flags)
        assert done.code == 0, done.err

    train("plain")
    graphs = Graphs()
    monkeypatch.setattr(unfused_fast.training.loop, "compiled", graphs.compiled)
    monkeypatch.setattr(Options, "begin_step", lambda options: graphs.begin_step())
    train("graphs")
    graphs.begin_step()
    assert graphs.steps == steps
    assert_same_run(tmp_path / "graphs", tmp_path / "plain")


@pytest.mark.gpu
@pytest.mark.parametrize("store", ["resident", "stream"])
def test_losses_in_cuda_graphs_are_those_without(
    cli: Any, tones: Path, tiny: list[str], tmp_path: Path, store: str
) -> None:
    # without dropout, whose random numbers the compiler draws in another order
    flags = [*tiny, "--device", "cuda", *sets("model.dropout=0 train.amp=fp32"), "--data", store, "--epochs", 3]
    for name, more in (("plain", ["--no-compile"]), ("graphs", ["--compile-mode", "reduce-overhead"])):
        done = cli("train", "pretrain", tones, "--out", tmp_path / name, *flags, *more)
        assert done.code == 0 and "skipping cudagraphs" not in done.err, done.err
    losses = [[row["loss"] for row in log_of(tmp_path / name)] for name in ("plain", "graphs")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
