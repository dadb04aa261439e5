"""k-mix: the partner is of the cluster farthest away that the memory holds."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.data.augment import Augmenter
from unfused_fast.data.mixup import MixupMemory, clusters_of, farthest_first

CENTROIDS = normalize(torch.tensor([[1.0, 0.1], [0.2, 1.0], [-1.0, 0.3], [0.8, 0.9]]), dim=1)
"""Seen from the first: the third is farthest, then the second, then the fourth, then itself."""


def crops_like(clusters: torch.Tensor) -> torch.Tensor:
    """(B, 1, 2, 6) whose means over time are these centroids, twice as long, with a line around them."""
    line = torch.linspace(-1, 1, 6)
    return (2 * CENTROIDS[clusters])[:, None, :, None] + line


def test_a_crop_belongs_to_the_centroid_that_its_mean_over_time_points_to() -> None:
    clusters = torch.tensor([0, 3, 1, 2, 2])
    assert torch.equal(clusters_of(crops_like(clusters), CENTROIDS), clusters)
    assert farthest_first(CENTROIDS)[0].tolist() == [2, 1, 3, 0]


def test_the_partner_is_of_the_farthest_cluster_that_the_own_partition_holds() -> None:
    """Against lists of what each of two partitions holds, of clips below 100 and from there on."""
    generator = torch.Generator().manual_seed(0)
    memory, order = MixupMemory(5, torch.tensor([100]), 2, 6, clustered=True), farthest_first(CENTROIDS)
    held: list[list[tuple[int, int]]] = [[], []]
    distances = 1 - (CENTROIDS @ CENTROIDS.T).numpy()
    for size in (3, 4, 1, 9, 2, 6):
        ids, clusters = (torch.randint(most, (size,), generator=generator) for most in (200, 4))
        draws = torch.rand(size, 2, generator=generator)
        slots, shares = memory.draw(ids, draws, 0.5, order[clusters])
        for clip, cluster, draw, slot, share in zip(
            ids.tolist(), clusters.tolist(), draws.tolist(), slots, shares, strict=True
        ):
            there = held[clip // 100]
            far = max((distances[cluster, of] for _, of in there), default=None)
            partner = int(memory.clip_ids[slot])
            if far is None or partner == clip:
                assert share == 0
                continue
            among = [other for other, of in there if distances[cluster, of] == far]
            assert partner in among and share == np.float32(draw[1]) * np.float32(0.5)
        memory.push(ids, crops_like(clusters), clusters)
        for clip, cluster in zip(ids.tolist(), clusters.tolist(), strict=True):
            held[clip // 100] = (held[clip // 100] + [(clip, cluster)])[-5:]


def test_every_member_of_the_cluster_is_drawn() -> None:
    memory = MixupMemory(6, torch.zeros(0, dtype=torch.int64), 2, 6, clustered=True)
    clusters = torch.tensor([2, 0, 2, 1, 2])
    memory.push(torch.arange(5), crops_like(clusters), clusters)
    draws = torch.stack([torch.linspace(0, 0.999, 9), torch.full((9,), 0.5)], dim=1)
    slots, _ = memory.draw(torch.full((9,), 50), draws, 0.4, farthest_first(CENTROIDS)[0].expand(9, 4))
    assert memory.clip_ids[slots].tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4]


def test_views_are_mixed_with_it_and_the_state_goes_on() -> None:
    values = {"frontend.n_mels": 8, "data.crop_seconds": 0.08, "aug.rrc.enabled": False, "data.partitions": 1}
    config = with_values(preset("recommended", "pretrain", "slicer"), values)
    one, two = (Augmenter(config, 40, torch.device("cpu")) for _ in range(2))
    centroids = torch.zeros(2, 8)
    centroids[0, 0] = centroids[1, 0] = 1
    centroids[1] = -centroids[0]
    crops = centroids[torch.arange(10) % 2][:, None, :, None].expand(10, 1, 8, 9) * 3
    for start in (0, 10):
        one(torch.arange(start, start + 10), (crops, crops), 1, None, centroids)
    state = one.state()
    assert state["mixup.clusters"].tolist() == [0, 1] * 10 + [torch.iinfo(torch.int64).max] * 20
    two.load_state(state)
    (first, _), (again, _) = (of(torch.arange(30, 40), (crops, crops), 2, None, centroids) for of in (one, two))
    assert torch.equal(first, again)
    share = (first.exp() - crops.exp())[:, 0, 0, 0] / (-crops).exp().sub(crops.exp())[:, 0, 0, 0]
    assert share.min() > 0 and share.max() < config.aug.mixup.ratio, "log((1 - share) exp(x) + share exp(-x))"


def test_other_methods_keep_no_clusters() -> None:
    assert "mixup.clusters" not in Augmenter(Config(), 40, torch.device("cpu")).state()
