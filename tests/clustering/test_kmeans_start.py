"""How k-means starts, what becomes of empty clusters, and how ids stay: against scikit-learn, scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from points import blobs
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch.nn.functional import normalize

from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.clustering.seeding import Points, kmeans_plus_plus, match_clusters, random_rows


def test_random_rows_are_uniform_and_all_different() -> None:
    points = Points(blobs(40, 4, 3))
    drawn = torch.stack([random_rows(points, 10, seed) for seed in range(400)])
    assert all(len(set(row)) == 10 for row in drawn.tolist())
    counts = torch.bincount(drawn.flatten(), minlength=40).double()
    assert ((counts - 100).square() / 100).sum() < 80  # chi-square of 39 degrees: 80 is passed once in 10,000


def test_kmeans_plus_plus_has_the_probabilities_of_its_paper() -> None:
    """Second row given the first, over many seeds, beside (1 - cosine) / sum."""
    angles = torch.tensor([0.0, 0.4, 1.0, 2.0, 3.0])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    held, counts = Points(points), torch.zeros(5, 5)
    for seed in range(500):
        first, second = (points @ row > 1 - 1e-6 for row in kmeans_plus_plus(held, 2, seed, 1.0))
        counts[first.long().argmax(), second.long().argmax()] += 1
    weights = (1 - points @ points.T).clamp(min=0)
    expected = counts.sum(dim=1, keepdim=True) * weights / weights.sum(dim=1, keepdim=True)
    possible = expected > 1
    assert counts[~possible].sum() <= 2
    assert ((counts - expected).square() / expected)[possible].sum() < 45  # 15 degrees of freedom


def test_kmeans_plus_plus_on_fewer_directions_than_clusters() -> None:
    points = torch.eye(3).repeat(5, 1)
    found = spherical_kmeans(points, 6, init="kmeans++", generator=torch.Generator().manual_seed(0))
    assert sorted(found.counts.tolist()) == [0, 0, 0, 5, 5, 5]


def test_reseed_takes_the_farthest_rows() -> None:
    points = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.6, 0.8], [0.0, 1.0]]), dim=1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, -0.01]])
    found = spherical_kmeans(points, 3, init=start, iterations=1, empty="reseed")
    assert found.centroids[1].tolist() == points[4].tolist()  # the farthest of all
    torch.testing.assert_close(found.centroids[2], points[3])
    assert found.counts.min() > 0


def test_the_best_start_wins() -> None:
    points = blobs(400, 16, 12, noise=0.3)
    one, best = (
        [
            spherical_kmeans(points, 12, iterations=4, n_init=count, generator=torch.Generator().manual_seed(seed))
            for seed in range(4)
        ]
        for count in (1, 6)
    )
    better = [many.objective.item() - first.objective.item() for first, many in zip(one, best, strict=True)]
    assert min(better) >= 0 and max(better) > 0.001


def test_matched_clusters_keep_their_ids() -> None:
    points = blobs(900, 24, 10, noise=0.3)
    first = spherical_kmeans(points, 10, init="kmeans++", generator=torch.Generator().manual_seed(0))
    again = spherical_kmeans(
        points, 10, init="kmeans++", generator=torch.Generator().manual_seed(1), previous=first.assignments
    )
    assert normalized_mutual_info_score(first.assignments, again.assignments) > 0.9
    overlap = np.zeros((10, 10))
    np.add.at(overlap, (first.assignments.numpy(), again.assignments.numpy()), 1)
    assert (first.assignments == again.assignments).sum() == overlap[linear_sum_assignment(-overlap)].sum()
    own = (points @ again.centroids.T).argmax(dim=1)
    assert torch.equal(own, again.assignments)
    assert again.counts.tolist() == torch.bincount(again.assignments, minlength=10).tolist()


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_matching_beside_the_best_one(noise: float) -> None:
    generator = np.random.default_rng(0)
    previous = generator.integers(0, 12, 3000)
    renaming = generator.permutation(12)
    ids = np.where(generator.random(3000) < noise, generator.integers(0, 12, 3000), renaming[previous])
    mapping = match_clusters(torch.from_numpy(ids), torch.from_numpy(previous), 12).numpy()
    assert sorted(mapping) == list(range(12))
    overlap = np.zeros((12, 12))
    np.add.at(overlap, (ids, previous), 1)
    best = overlap[linear_sum_assignment(-overlap)].sum()
    kept = overlap[np.arange(12), mapping].sum()
    assert kept == best if noise < 0.5 else kept >= best / 2
