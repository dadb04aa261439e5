"""Every method by parameter: is the same on two ranks, waits for no device, and serves what comes after it; what it
cannot do it says in a sentence. That it resumes bit for bit is in tests/training/test_run_kills.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from host_waits import Recorded
from method_kinds import DECARS, KINDS, PARTS, flags, sets
from outcomes import Cli
from rank_jobs import run_jobs
from safetensors.torch import load_file
from same_runs import assert_same_run, log_of
from stopping import signalled_after

from unfused_fast.config import MethodName, preset, with_values
from unfused_fast.methods import METHODS
from unfused_fast.models import KeyQueue
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.features import load_encoder
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run

CPU = torch.device("cpu")
SIGNS = {"alignment", "output_std", "diagonal", "perplexity"}
"""In the log of an epoch; its line has their words."""
WORDS = re.compile("uniformity|std of outputs|correlation of views|in use")


@pytest.fixture(scope="module")
def whole(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`whole(kind)`: a finished run of two epochs, each a step in two parts, then a last batch of one of 60 clips, of
    which BatchNorm has no deviation.
    """
    folder = tmp_path_factory.mktemp("methods")

    def run(kind: str) -> Path:
        out = folder / kind.replace(", ", "-").replace(" ", "-")
        if not out.exists():
            method, values = {**KINDS, **DECARS}[kind]
            given = sets(f"{values} train.batch_size=59 {PARTS}".replace("queue=40", "queue=59"))
            done = cli("train", "pretrain", tones, "--out", out, "--epochs", 2, *tiny_any, "--method", method, *given)
            assert done.code == 0, done.err
            said = re.sub(r"\s+", " ", done.err)
            assert METHODS[method].title in said and (WORDS.search(said) or kind in DECARS)
        return out

    return run


def test_every_method_has_a_name_a_recipe_and_its_tests() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert {method for method, _ in KINDS.values()} == set(METHODS) - {"decar-v2", "decar-v1"}
    for name in METHODS:
        assert preset("recommended", "pretrain", name).method.name == name


@pytest.mark.parametrize("kind", [*KINDS, *DECARS])
def test_the_encoder_of_a_run_is_read(whole: Callable[[str], Path], kind: str) -> None:
    run = whole(kind)
    assert (run / "bank.zarr").exists() == (run / "clusters.png").exists() == (kind in DECARS)
    frozen, view = load_encoder(run, CPU), (torch.randn(2, 1, 64, 96), torch.tensor([96, 80]))
    shapes = [frozen.features(*view, of, "mean").shape for of in ("encoder", "projector")]
    assert shapes == [(2, 32), (2, 16)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_within_an_epoch_ends_as_the_undisturbed_one(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path: Path, kind: str
) -> None:
    """A half-filled queue, networks that follow, prototypes, and the signs of the epoch. The DECARs: test_loop.py."""
    given = ["train", "pretrain", tones, "--epochs", 2, *tiny_any, *flags(kind), *sets(PARTS), "--out"]
    assert cli(*given, tmp_path / "whole").code == 0
    with signalled_after(2):
        assert cli(*given, tmp_path / "parts").code == 130
    resumed = cli(*given, tmp_path / "parts", "--resume")
    assert resumed.code == 0 and "resuming after batch 2 of epoch 1" in resumed.err, resumed.err
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_without_a_bank_serves_later_commands(
    cli: Cli, tones: Path, tone_rows: Any, distill: Cli, linear: Cli, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run = whole("slicer")
    done = distill(tones, run, tmp_path / "distill", *sets("pseudo.k=3 pseudo.pca_dim=4 pseudo.feature=projector"))
    assert done.code == 0, done.err
    done = linear(tones, run, tmp_path / "linear", "--json")
    assert done.code == 0 and json.loads(done.out)["features"] == 32, done.err
    done = cli("embed", tone_rows[0].path, "--encoder", run, "--out", tmp_path / "one.npz", "--workers", 1)
    assert done.code == 0, done.err
    assert np.load(tmp_path / "one.npz")["embeddings"].shape == (1, 32)
    done = cli("clusters", run)
    assert done.code == 1 and "give a run of train pretrain by decar-v2 or decar-v1" in done.error


def test_two_ranks_train_as_one(tones: Path, tiny_any: list[str], tmp_path: Path) -> None:
    """Gathered negatives and their gradient, the queue and the log included. Batches of 17: shares differ in size.

    Of an epoch's three steps: where two values that max-pooling compares are equal up to rounding, a gradient takes
    another way, which grows from step to step.
    """
    command = ["train", "pretrain", str(tones), "--epochs", "2", *tiny_any, *sets("optim.name=sgd train.batch_size=17")]
    outs = {(kind, ranks): tmp_path / f"{number}-{ranks}" for number, kind in enumerate(KINDS) for ranks in (1, 2)}
    jobs = [
        {"ranks": ranks, "arguments": [*command, *flags(kind), "--out", str(out)]}
        for (kind, ranks), out in outs.items()
    ]
    for job, ends in zip(jobs, run_jobs(jobs), strict=True):
        assert [end["code"] for end in ends] == [0] * job["ranks"], (job, ends)
    for kind in KINDS:
        one, two = outs[kind, 1], outs[kind, 2]
        for wanted, found in zip(log_of(one), log_of(two), strict=True):
            assert wanted == pytest.approx(found, rel=1e-4, abs=2e-4) and SIGNS & set(wanted)
        first, second = (load_file(run / "checkpoints/epoch-000001.safetensors") for run in (one, two))
        assert set(first) == set(second)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-3, msg=f"{kind}: {name}")


@pytest.fixture
def made(tones: Path, tiny_any: list[str], tmp_path: Path) -> Callable[..., Any]:
    """`made(kind, device)`: a trainer at its first step, and the full batches of an epoch."""

    def trainer(kind: str, device: str = "cpu") -> Any:
        (method, values), shards = KINDS[kind], open_shards(tones)
        options = Options(torch.device(device), compile=False)
        given = dict(item.split("=") for item in [*tiny_any, *values.split()] if "=" in item)
        config = with_values(preset("recommended", "pretrain", method), given)
        own, trainer = pretrainer(config, shards, options, Run(tmp_path / kind, "pretrain", config, shards, options))
        trainer.begin_epoch(1)
        return own, trainer, list(trainer.batches(1))[:-1]

    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits(made: Callable[..., Any], kind: str) -> None:
    _, trainer, batches = made(kind)
    trainer.train_batch(batches[0])
    with Recorded() as seen:
        trainer.train_batch(batches[1])
    assert "convolution_backward" in seen.names
    assert not seen.waits


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_gpu_never_waits(made: Callable[..., Any], kind: str) -> None:
    _, trainer, batches = made(kind, "cuda")
    trainer.train_batch(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_batch(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("kind", "follower", "left_out"),
    [
        ("moco", "key_network", "none"),
        ("byol", "target", "predictor."),
        ("delores-m", "key_network", "heads."),
        ("slicer", "key_network", "clusterer."),
    ],
)
def test_what_follows_gets_no_gradient_and_moves_by_its_average_alone(
    made: Callable[..., Any], kind: str, follower: str, left_out: str
) -> None:
    method, trainer, batches = made(kind)
    copied = getattr(method, follower)
    before = {name: parameter.clone() for name, parameter in copied.named_parameters()}
    known = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    for batch in batches[:2]:
        trainer.train_batch(batch)
        for name, parameter in copied.named_parameters():
            assert parameter.grad is None and not parameter.requires_grad and id(parameter) not in known
            wanted = 0.9 * before[name] + 0.1 * method.network.get_parameter(name).detach()
            torch.testing.assert_close(parameter, wanted)
            before[name] = parameter.clone()
    assert len(before) == sum(not name.startswith(left_out) for name, _ in method.network.named_parameters())


def test_the_queue_gets_the_keys_of_the_batch(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method, trainer, batches = made("moco")
    pushed: list[torch.Tensor] = []
    original = KeyQueue.push
    monkeypatch.setattr(KeyQueue, "push", lambda queue, keys: (pushed.append(keys), original(queue, keys)))
    for batch in batches:
        trainer.train_batch(batch)
    assert torch.equal(method.queue.keys[:8], pushed[-1][-8:]), "of 48 keys in a queue of 40"
    assert [len(keys) for keys in pushed] == [16, 16, 16] and not any(keys.requires_grad for keys in pushed)
    torch.testing.assert_close(torch.cat(pushed).norm(dim=1), torch.ones(48))


def test_the_deviation_of_outputs_is_that_of_numpy(made: Callable[..., Any]) -> None:
    method, trainer, batches = made("byol")
    outputs, run = [], method.run

    def noted(view: torch.Tensor, **given: Any) -> torch.Tensor:
        made: torch.Tensor = run(view, **given)
        if not given:
            outputs.append(made.detach())
        return made

    method.run = noted
    for batch in batches:
        trainer.train_batch(batch)
    units = [output / np.linalg.norm(output, axis=1, keepdims=True) for output in map(np.asarray, outputs[::2])]
    variances = [16 * unit.var(axis=0).mean() for unit in units]  # 16 dimensions
    assert method.end_epoch()["output_std"] == pytest.approx(np.mean(variances) ** 0.5, abs=1e-4)


@pytest.mark.parametrize("more", [[], ["--resume-anyway"]])
def test_a_run_of_another_method_is_not_resumed(
    cli: Cli, tones: Path, tiny_any: list[str], copy_of: Callable[[Path], Path], whole: Callable[[str], Path],
    more: list[str],
) -> None:  # fmt: skip
    run = copy_of(whole("simclr"))
    (run / "result.json").unlink()
    other = ["--method", "moco", *sets("model.projector=batchnorm"), *more]  # the network itself would fit
    done = cli("train", "pretrain", tones, "--out", run, "--epochs", 4, *tiny_any, "--resume", *other)
    assert done.code == 1 and done.error.endswith("of --method simclr, not moco; use --method simclr, or another --out")


def test_help_and_config_name_methods_and_their_sources(cli: Cli) -> None:
    shown = cli("train", "pretrain", "--help").out
    assert all(name in shown for name in METHODS)
    lines = json.loads(cli("config", "--method", "moco", "--preset", "authors", "method", "--json").out)
    assert {"method.name": "moco", "method.queue": 65536, "method.ema": 0.999}.items() <= lines.items()
    assert "Source: BYOL-A" in re.sub(r"[\s│]+", " ", cli("config", "--method", "byol", "method.ema").out)
