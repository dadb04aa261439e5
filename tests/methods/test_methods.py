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
from outcomes import Cli, PackRows
from rank_jobs import run_jobs
from safetensors.torch import load_file
from same_runs import log_of

from unfused_fast.commands.options import read_by
from unfused_fast.config import MethodName, preset, with_values
from unfused_fast.distributed import ALONE
from unfused_fast.errors import UserError
from unfused_fast.methods import METHODS
from unfused_fast.models import KeyQueue
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
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


@pytest.mark.parametrize(
    ("method", "values", "says"),
    [
        ("moco", "method.queue=61", "method.queue = 61, but the train split has 60 clips, and a clip would"),
        ("moco", "method.queue=15", "method.queue = 15, but a batch has 16 clips, whose keys would push each other ou"),
        (
            "moco",
            "train.batch_size=31",
            "auto is 30 for 60 clips, and moco wants at least a batch of 31; use --set tra",
        ),
        ("moco", "train.patience=3", "train.patience = 3, but method moco does not read it"),
        ("moco", "aug.mixup.partner=farthest", "moco does not read it; leave it at any, or use --method sl"),
        ("moco", "method.ema=1.5", "method.ema = 1.5: want a number, from 0 to 1"),
        ("slicer", "method.queue=15 train.batch_size=auto", "use --set method.queue=auto, or 16 to 60"),
        ("slicer", "cluster.k=auto", "cluster.k = auto, but the cluster head of method slicer has a fixed width"),
        ("slicer", "cluster.k=61", "cluster.k = 61, but the train split has 60 clips; use a number up to 60"),
        ("decar-v2", "cluster.pca_dim=8", "but method decar-v2 does not read it; leave it at auto, or use --meth"),
        ("decar-v2", "cluster.whiten=false", "but method decar-v2 does not read it; leave it at True"),
        ("decar-v2", "cluster.pic_alpha=0.5", "but method decar-v2 does not read it; leave it at 0.001"),
        ("decar-v2", "optim.head_lr=1", "prototypes.freeze = True does not read it; leave it at 0.05"),
        ("decar-v1", "cluster.algo=pca_kmeans cluster.pic_sigma=1", "0.2, or use cluster.algo=pic"),
        ("decar-v1", "cluster.algo=spherical cluster.whiten=false", "or use cluster.algo=pca_kmeans or pic"),
        ("simclr", "train.batch_size=2", "a batch of 2 clips: simclr tells a clip from the others of its"),
        ("simclr", "train.batch_size=6 train.accumulate=2", "a batch of 6 clips in 2 parts: simclr tells"),
        ("simclr", "method.queue=30", "method.queue = 30, but method simclr does not read it; leave it at 65536"),
        ("simclr", "views.local=2", "simclr does not read it; leave it at 0, or use --method decar-v2, moco"),
        ("simclr", "bank.dtype=bf16", "leave it at fp32, or use --method decar-v2 or decar-v1"),
        ("byol", "data.sampler=uniform_clusters", "method byol does not read it; leave it at every_clip"),
        ("byol", "cluster.k=8", "cluster.k = 8, but method byol does not read it; leave it at 512, or use --method"),
        ("barlow", "train.batch_size=3", "a batch of 3 clips: barlow correlates outputs over a batch, and wants"),
        ("barlow", "views.local=2 views.local_seconds=0.05", "0.05, 6 frames: want less than data.crop_seconds = 0.95"),
        ("barlow", "loss.temperature=0.2", "use --method decar-v2, simclr, moco, delores-m, slicer or swav"),
        ("delores-m", "method.similarity=bilinear", "but method delores-m does not read it; leave it at cosine"),
        (
            "swav",
            "views.local=2 views.local_seconds=0.95",
            "views.local_seconds = 0.95, 96 frames: want less than data",
        ),
        ("swav", "cluster.k=61", "cluster.k = 61, but the train split has 60 clips"),
        ("swav", "cluster.k=4,5", "cluster.k = 4,5, but method swav has one set of prototypes; give one number"),
        ("swav", "cluster.algo=pic", "cluster.algo = pic, but method swav does not read it"),
    ],
)
def test_what_a_method_cannot_do_is_said(tiny_any: list[str], method: MethodName, values: str, says: str) -> None:
    """By its settings, or as it is made for 60 clips."""
    given = dict(item.split("=") for item in [*tiny_any, *values.split()] if "=" in item)
    with pytest.raises(UserError) as raised:
        METHODS[method](with_values(preset("recommended", "pretrain", method), given), 60, 0, CPU, ALONE)
    assert says in str(raised.value)


def test_a_set_that_is_too_small_is_refused_with_what_to_do(
    cli: Cli, tone_rows: list[SourceRow], pack_rows: PackRows, tiny_any: list[str], tmp_path: Path
) -> None:
    three = pack_rows([row for row in tone_rows if row.split == "train"][:3], tmp_path / "three")
    for method, says in (
        ("swav", "the train split has 3 clips: swav"),
        ("moco", "at least a batch of 3; use a larger"),
    ):
        done = cli("train", "pretrain", three, "--out", tmp_path / "run", *tiny_any, "--method", method)
        assert done.code == 1 and says in done.error and "use a larger set, or --method byol" in done.error
    byol = ["train", "pretrain", three, "--out", tmp_path / "run", *tiny_any, "--method", "byol"]
    done = cli(*byol, *sets("train.accumulate=2"))
    assert done.code == 1 and "has 3, and BatchNorm wants at least 2 in each part; use fewer parts" in done.error
    done = cli(*byol, *sets("views.same_crop=false data.crop_seconds=9 train.epochs=1"))
    assert done.code == 0 and "both crops of a clip are the same" in re.sub(r"\s+", " ", done.err)


def test_what_only_its_method_reads_is_left_out_after_pretraining(cli: Cli, tones: Path, tmp_path: Path) -> None:
    """By `train all` and `ablate`, whose --set goes to all stages: the set is refused after that of their settings."""
    values = ["--method", "moco", *sets("method.queue=20 train.batch_size=2 train.accumulate=2")]
    for command in (["train", "all"], ["ablate", "--vary", "method.ema=0.9,0.99"]):
        done = cli(*command, tones, "--out", tmp_path / command[0], "--device", "cpu", *values)
        assert done.code == 1 and "train.accumulate = 2, but of a batch of 2 clips" in done.err


def test_a_setting_goes_to_the_methods_that_read_it() -> None:
    """`decar-v2` reads some beside another one alone: where that is given too, or no other method reads it."""
    two, ema, follower = ("moco", "decar-v2"), "method.ema=0.9", "bank.encoder=follower"
    assert read_by([ema], "moco", two) == read_by([ema], "decar-v2", ["decar-v2"]) == [ema]
    assert read_by([ema], "decar-v2", two) == read_by([ema], "decar-v2", ["moco"]) == []
    assert read_by([ema, follower], "decar-v2", two) == [ema, follower]
    assert read_by([ema], "decar-v2", two, ["bank.encoder"]) == [ema], "which --config sets"


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
