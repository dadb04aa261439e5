"""Settings of methods: which go together and with a set, and what is said of those that do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from method_kinds import sets
from outcomes import Cli, PackRows

from unfused_fast.commands.options import read_by
from unfused_fast.config import MethodName, preset, with_values
from unfused_fast.distributed import ALONE
from unfused_fast.errors import UserError
from unfused_fast.methods import METHODS
from unfused_fast.shards.sources.row import SourceRow

CPU = torch.device("cpu")


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
