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
from rank_jobs import run_jobs
from safetensors.torch import load_file
from same_runs import log_of

from unfused_fast.config import MethodName, preset, with_values
from unfused_fast.methods import METHODS
from unfused_fast.models import KeyQueue
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run

Cli = Callable[..., Any]
SIGNS = {"alignment", "output_std", "diagonal", "perplexity"}
"""In the log of an epoch; its line has their words."""
WORDS = re.compile("uniformity|std of outputs|correlation of views|in use")


@pytest.fixture(scope="module")
def whole(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`whole(kind)`: a finished run of three epochs, in two parts a step."""
    folder = tmp_path_factory.mktemp("methods")

    def run(kind: str) -> Path:
        out = folder / kind.replace(", ", "-").replace(" ", "-")
        if not out.exists():
            done = cli("train", "pretrain", tones, "--out", out, "--epochs", 3, *tiny_any, *flags(kind), *sets(PARTS))
            assert done.code == 0, done.err
            said = re.sub(r"\s+", " ", done.err)
            assert METHODS[KINDS[kind][0]].title in said and WORDS.search(said)
        return out

    return run


def test_every_method_has_a_name_a_recipe_and_its_tests() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert {method for method, _ in KINDS.values()} == set(METHODS) - {"decar-v2", "decar-v1"}
    for name in METHODS:
        assert preset("recommended", "pretrain", name).method.name == name


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_serves_later_commands(
    cli: Cli, tones: Path, tone_rows: Any, distill: Cli, linear: Cli, whole: Callable[[str], Path], tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    run = whole(kind)
    assert not (run / "bank.zarr").exists() and not (run / "clusters.png").exists()
    done = distill(tones, run, tmp_path / "distill", *sets("pseudo.k=3 pseudo.pca_dim=4 pseudo.feature=projector"))
    assert done.code == 0, done.err
    done = linear(tones, run, tmp_path / "linear", "--json")
    assert done.code == 0 and json.loads(done.out)["features"] == 32, done.err
    done = cli("embed", tone_rows[0].path, "--encoder", run, "--out", tmp_path / "one.npz", "--workers", 1)
    assert done.code == 0, done.err
    assert np.load(tmp_path / "one.npz")["embeddings"].shape == (1, 32)
    done = cli("clusters", run)
    assert done.code == 1 and "give a run of train pretrain by decar-v2 or decar-v1" in done.error


@pytest.mark.parametrize("kind", [*KINDS, *DECARS])
def test_a_last_batch_of_one_clip(cli: Cli, tones: Path, tiny_any: list[str], tmp_path: Path, kind: str) -> None:
    """60 clips in batches of 59: BatchNorm has no deviation of one clip."""
    more = [word.replace("queue=40", "queue=59") for word in [*flags(kind), *sets("train.batch_size=59")]]
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", "--epochs", 1, *tiny_any, *more)
    assert done.code == 0, done.err


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


@pytest.mark.parametrize(
    ("method", "values", "says"),
    [
        (
            "moco",
            "method.queue=61",
            "method.queue = 61, but the train split has 60 clips, and a clip would",
        ),
        ("moco", "method.queue=15", "method.queue = 15, but a batch has 16 clips, whose keys would push each other ou"),
        ("slicer", "method.queue=15 train.batch_size=auto", "use --set method.queue=auto, or 16 to 60"),
        (
            "decar-v2",
            "cluster.pca_dim=8",
            "= 8, but method decar-v2 does not read it; leave it at auto, or use --meth",
        ),
        ("decar-v1", "cluster.algo=pca_kmeans cluster.pic_sigma=1", "0.2, or use cluster.algo=pic"),
        ("decar-v1", "cluster.algo=spherical cluster.whiten=false", "or use cluster.algo=pca_kmeans or pic"),
        (
            "simclr",
            "train.batch_size=2",
            "a batch of 2 clips: simclr tells a clip from the others of its",
        ),
        ("simclr", "train.batch_size=6 train.accumulate=2", "a batch of 6 clips in 2 parts: simclr tells"),
        (
            "simclr",
            "method.queue=30",
            "method.queue = 30, but method simclr does not read it; leave it at 65536",
        ),
        (
            "byol",
            "data.sampler=uniform_clusters",
            "method byol does not read it; leave it at every_clip",
        ),
        ("byol", "train.accumulate=16", "has 16, and BatchNorm wants at least 2 in each part; use fewer parts"),
        ("moco", "train.patience=3", "train.patience = 3, but method moco does not read it"),
        ("barlow", "train.batch_size=3", "a batch of 3 clips: barlow correlates outputs over a batch, and wants"),
        ("delores-m", "method.similarity=bilinear", "but method delores-m does not read it; leave it at cosine"),
        ("slicer", "cluster.k=auto", "cluster.k = auto, but the cluster head of method slicer has a fixed width"),
        (
            "swav",
            "views.local=2 views.local_seconds=0.95",
            "views.local_seconds = 0.95, 96 frames: want less than data",
        ),
        ("barlow", "views.local=2 views.local_seconds=0.05", "0.05, 6 frames: want less than data.crop_seconds = 0.95"),
        (
            "simclr",
            "views.local=2",
            "but method simclr does not read it; leave it at 0, or use --method decar-v2, moco",
        ),
        ("moco", "aug.mixup.partner=farthest", "but method moco does not read it; leave it at any, or use --method sl"),
        ("swav", "cluster.k=61", "cluster.k = 61, but the train split has 60 clips"),
        ("slicer", "cluster.k=61", "cluster.k = 61, but the train split has 60 clips; use a number up to 60"),
        (
            "moco",
            "train.batch_size=31",
            "auto is 30 for 60 clips, and moco wants at least a batch of 31; use --set tra",
        ),
        ("swav", "cluster.k=4,5", "cluster.k = 4,5, but method swav has one set of prototypes; give one number"),
        ("byol", "cluster.k=8", "cluster.k = 8, but method byol does not read it; leave it at 512, or use --method"),
        ("simclr", "bank.dtype=bf16", "leave it at fp32, or use --method decar-v2 or decar-v1"),
        ("barlow", "loss.temperature=0.2", "use --method decar-v2, simclr, moco, delores-m, slicer or swav"),
        ("swav", "cluster.algo=pic", "cluster.algo = pic, but method swav does not read it"),
        ("moco", "method.ema=1.5", "method.ema = 1.5: want a number, from 0 to 1"),
    ],
)
def test_what_a_method_cannot_do_is_said(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path: Path, method: str, values: str, says: str
) -> None:
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny_any, "--method", method, *sets(values))
    assert done.code == 1 and says in done.error


def test_a_set_that_is_too_small_is_refused_with_what_to_do(
    cli: Cli, tone_rows: list[SourceRow], pack_rows: Callable[..., Path], tiny_any: list[str], tmp_path: Path
) -> None:
    three = pack_rows([row for row in tone_rows if row.split == "train"][:3], tmp_path / "three")
    for method, says in (
        ("swav", "the train split has 3 clips: swav"),
        ("moco", "at least a batch of 3; use a larger"),
    ):
        done = cli("train", "pretrain", three, "--out", tmp_path / "run", *tiny_any, "--method", method)
        assert done.code == 1 and says in done.error and "use a larger set, or --method byol" in done.error
    values = sets("views.same_crop=false data.crop_seconds=9 train.epochs=1")
    done = cli("train", "pretrain", three, "--out", tmp_path / "run", *tiny_any, "--method", "byol", *values)
    assert done.code == 0 and "both crops of a clip are the same" in re.sub(r"\s+", " ", done.err)


def test_what_only_its_method_reads_is_left_out_after_pretraining(cli: Cli, tones: Path, tmp_path: Path) -> None:
    """By `train all` and `ablate`, whose --set goes to all stages: the set is refused after that of their settings."""
    values = ["--method", "moco", *sets("method.queue=20 train.batch_size=2 train.accumulate=2")]
    for command in (["train", "all"], ["ablate", "--vary", "method.ema=0.9,0.99"]):
        done = cli(*command, tones, "--out", tmp_path / command[0], "--device", "cpu", *values)
        assert done.code == 1 and "train.accumulate = 2, but of a batch of 2 clips" in done.err


def test_an_unknown_method_is_refused(cli: Cli, tones: Path, tmp_path: Path) -> None:
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", "--method", "simsiam")
    assert done.code == 2 and "simclr" in done.err and not (tmp_path / "run").exists()


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
