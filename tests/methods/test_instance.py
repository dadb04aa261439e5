"""The term that DECAR-v2 may have beside its clusters, against lightly; what it leaves as it was; what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly_losses import lightly_loss
from outcomes import Cli, refused
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unfused_fast.config.presets import preset, with_values
from unfused_fast.distributed import ALONE
from unfused_fast.errors import UserError
from unfused_fast.methods.decar_v2 import DecarV2

CLIPS = 40
SMALL = {"model.channels": 4, "model.dim": 32, "model.proj_dim": 6, "cluster.k": "4,3", "train.batch_size": 12}


def units(clips: int, seed: int) -> Tensor:
    rows = torch.randn(clips, 6, generator=torch.Generator().manual_seed(seed))
    return normalize(rows, dim=1).requires_grad_()


def made(projected: list[Tensor], **values: Any) -> Any:
    """DECAR-v2, clustered once, whose network gives for view v the rows `projected[v]`."""
    method = DecarV2(
        with_values(preset("recommended", "pretrain"), {**SMALL, **values}), CLIPS, 0, torch.device("cpu"), ALONE
    )
    method.bank.write(torch.arange(CLIPS), units(CLIPS, 0).detach())
    method._cluster(1)
    ALONE.batch([12])
    method.run = lambda view: projected[int(view)]
    return method


def by_clusters(method: Any, rows: Tensor, ids: Tensor) -> Tensor:
    """The loss of one view: the mean over heads of the cross-entropy at temperature 0.1."""
    return sum(cross_entropy(rows @ head.prototypes.T / 0.1, head.assignments[ids]) for head in method.heads) / 2


VIEWS, IDS = tuple(map(torch.tensor, range(3))), torch.arange(5, 17)


SIMCLR, BARLOW = {"loss.instance": "simclr"}, {"loss.instance": "barlow"}


def lightlys_simclr(*views: Tensor) -> Tensor:
    return lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=0.3)(*views)


def lightlys_barlow(*views: Tensor) -> Tensor:
    return lightly_loss("barlow_twins_loss", "BarlowTwinsLoss")(lambda_param=0.2)(*views) / 6


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({**SIMCLR, "loss.instance_temperature": 0.3}, lightlys_simclr),
        ({**BARLOW, "method.barlow_lambda": 0.2}, lightlys_barlow),
    ],
)
@pytest.mark.parametrize("bank_view", ["training", "separate"])
def test_the_term_is_lightlys_beside_the_mean_over_views(
    values: dict[str, Any], wanted: Callable[..., Tensor], bank_view: str
) -> None:
    own = [units(12, 5)] if bank_view == "separate" else []
    first, second = units(12, 1), units(12, 2)
    method = made([*own, first, second], **values, **{"loss.instance_weight": 0.7, "bank.view": bank_view})
    assert method.views == 2 + len(own)
    found = method.loss(VIEWS[: method.views], IDS)
    clusters = (by_clusters(method, first, IDS) + by_clusters(method, second, IDS)) / 2
    expected = clusters + 0.7 * wanted(first, second)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (first, second)) for loss in (found, expected)))
    method.after_step(IDS)
    log = method.instance.log()
    assert log["instance_loss"] == pytest.approx(wanted(first, second).item(), rel=1e-3), "without its weight"
    assert torch.equal(method.bank.rows[IDS], [*own, first][0]), "the second view has no row"


@pytest.mark.parametrize("instance", ["none", "simclr"])
def test_local_views_predict_clusters_and_have_no_other_part(instance: str) -> None:
    views = [units(12, seed) for seed in (1, 2, 3, 4)]
    projected = views if instance == "simclr" else [views[0], *views[2:]]
    method = made(projected, **{"loss.instance": instance, "views.local": 2})
    assert method.views == len(projected)
    found = method.loss(tuple(map(torch.tensor, range(method.views))), IDS)
    wanted = sum(by_clusters(method, rows, IDS) for rows in projected) / len(projected)
    if instance == "simclr":
        wanted = wanted + lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=0.2)(*views[:2])
    torch.testing.assert_close(found, wanted)
    method.after_step(IDS)
    assert torch.equal(method.bank.rows[IDS], views[0])


@pytest.mark.parametrize("instance", ["simclr", "barlow"])
def test_without_weight_the_loss_of_equal_views_is_that_of_one(instance: str) -> None:
    """Bit for bit: (a + a) / 2 is a."""
    rows = units(12, 1)
    alone = made([rows])
    beside = made([rows, rows], **{"loss.instance": instance, "loss.instance_weight": 0})
    assert alone.views == 1 and torch.equal(alone.loss(VIEWS[:1], IDS), beside.loss(VIEWS[:2], IDS))


@pytest.mark.parametrize(
    ("instance", "words", "signs"),
    [("simclr", "uniformity -", "alignment uniformity"), ("barlow", "correlation of views", "diagonal off_diagonal")],
)
def test_a_run_of_two_crops_says_how_the_views_agree(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, instance: str, words: str, signs: str
) -> None:
    given = ["--set", f"loss.instance={instance}", "--set", "views.same_crop=false", "--epochs", 2]
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny, *given, "--json")
    said = re.sub(r"\s+", " ", done.err)
    assert done.code == 0 and words in said and f"), beside them {instance}" in said, done.err
    assert re.search(rf"of which {instance} \d\.\d\d\d", said)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all({*signs.split(), "effective_rank", "nmi"} <= set(row) for row in rows)
    assert all(0 < row["instance_loss"] < row["loss"] for row in rows)
    assert json.loads(done.out)["instance"] == instance


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"loss.instance_weight": 0.5},
            "loss.instance_weight = 0.5, but method decar-v2 with loss.instance = none does not read it; leave it at "
            "1.0, or use loss.instance=simclr or barlow",
        ),
        ({**SIMCLR, "method.barlow_lambda": 1}, "0.005, or use loss.instance=barlow"),
        ({**BARLOW, "loss.instance_temperature": 1}, "0.2, or use loss.instance=simclr"),
        ({"method.ema": 0.9}, "bank.encoder = own does not read it; leave it at 0.99, or use bank.encoder=follower"),
        ({"loss.instance": "byol"}, "loss.instance = byol: want one of none, simclr, barlow"),
    ],
)
def test_what_the_term_does_not_read_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        with_values(preset("recommended", "pretrain"), values)
    assert says in str(raised.value)


def test_too_few_clips_to_compare_and_methods_without_clusters_are_refused(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path: Path
) -> None:
    train = ["train", "pretrain", tones, "--out", tmp_path / "run", *tiny_any, "--set", "loss.instance=barlow"]
    refused(
        cli(*train, "--set", "train.batch_size=6", "--set", "train.accumulate=2"),
        "a batch of 6 clips in 2 parts: decar-v2 with loss.instance = barlow compares the clips of a batch, and wants "
        "at least 4",
    )
    refused(
        cli(*train, "--method", "decar-v1"),
        "loss.instance = barlow, but method decar-v1 does not read it; leave it at none, or use --method decar-v2",
    )
