"""Local views ask: of the keys, targets and clusters they change nothing. Losses put together from plain functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from method_kinds import small
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.config import MethodName
from unfused_fast.methods.barlow import barlow_loss, cross_correlation
from unfused_fast.methods.byol import byol_loss
from unfused_fast.methods.moco import info_nce
from unfused_fast.methods.slicer import cluster_loss
from unfused_fast.models import block_features

OWN: dict[MethodName, dict[str, Any]] = {
    "moco": {"method.queue": 20},
    "delores-m": {"method.queue": 20, "method.barlow_weight": 0.5},
    "slicer": {"method.queue": 32, "cluster.k": 6},
    "byol": {},
}


def moco(method: Any, views: list[Tensor]) -> Tensor:
    key = normalize(method.key_network(views[1]), dim=1)
    queries = [normalize(method.network(view), dim=1) for view in (views[0], *views[2:])]
    return sum(info_nce(query, key, method.queue.keys, 0.2) for query in queries) / 3


def delores(method: Any, views: list[Tensor]) -> Tensor:
    key, of_key = method.key_network(views[1])
    queries, blocks = zip(*(method.network(view) for view in (views[0], *views[2:])), strict=True)
    contrast = [
        info_nce(*(normalize(rows, dim=1) for rows in (query, key)), method.queue.keys, 0.2) for query in queries
    ]
    assert torch.equal(blocks[1][2], block_features(method.network.encoder(views[2]).blocks[2]))
    heads = method.network.heads
    pairs = [(head(one), head(key)) for own in blocks for head, one, key in zip(heads, own, of_key, strict=True)]
    return sum(contrast) / 3 + sum(0.5 * barlow_loss(cross_correlation(*pair), 0.005) for pair in pairs) / 3


def slicer(method: Any, views: list[Tensor]) -> Tensor:
    first_key, second_key = (normalize(method.key_network(view)[0], dim=1) for view in views[:2])
    rows, shares = zip(*(method.network(view) for view in views), strict=True)
    first, second, *local = (normalize(of, dim=1) for of in rows)
    one = sum(info_nce(query, second_key, method.queue.keys, 0.2) for query in (first, *local)) / 3
    other = sum(info_nce(query, first_key, method.queue.keys, 0.2) for query in (second, *local)) / 3
    return one + other + cluster_loss(*shares[:2])


def byol(method: Any, views: list[Tensor]) -> Tensor:
    first, second = (method.target(view) for view in views[:2])
    made = [method.network(view) for view in views]
    asked = [
        (made[0], second),
        (made[1], first),
        *((local, target) for local in made[2:] for target in (first, second)),
    ]
    return 2 * sum(byol_loss(*pair) for pair in asked) / 6


@pytest.mark.parametrize(
    ("name", "by_hand"), [("moco", moco), ("delores-m", delores), ("slicer", slicer), ("byol", byol)]
)
def test_the_loss_with_two_local_views(name: MethodName, by_hand: Any) -> None:
    method = small(name, **{"model.dropout": 0, "views.local": 2, **OWN[name]})
    whole: Iterator[Tensor] = (torch.randn(16, 1, 64, 96) for _ in range(2))
    views, clips = [*whole, *(torch.randn(16, 1, 64, 41) for _ in range(2))], torch.arange(16)
    assert method.views == 4
    found = method.loss(tuple(views), clips)
    torch.testing.assert_close(found, by_hand(method, views))
    if name != "byol":
        method.after_step(clips)
        assert int(method.queue.oldest) == (0 if name == "slicer" else 16), "local views have no keys"
