"""The rows of k-means, its initial centroids and its treatment of empty clusters: the same on any number of ranks.

n rows on this rank, N on all, D features, K clusters. Random numbers are functions of (seed, draw, row). A choice
between products that float32 cannot distinguish is made in float64. Rank r holds the rows after those of ranks 0..r-1,
any number of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.data import bits, exponential
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.float32 import ieee_float32
from unfused_fast.kernels.assign import rounding_bound

SPLIT_STEP = 1.0 / 1024
"""Relative distance of the initial centroids of the two halves of a split cluster. Source: faiss Clustering.cpp
(EPS)."""
WIDE_ROWS = 4096
"""Rows converted to float32 or float64 at a time."""


class Points:
    """Rows (n, D) of this rank, float32 or bfloat16, and their place among those of all ranks."""

    def __init__(self, rows: Tensor, ranks: Ranks = ALONE) -> None:
        self.rows, self.ranks, self.dtype, self.device = rows, ranks, rows.dtype, rows.device
        self.count, self.features = rows.shape
        self.sizes: list[int] = ranks.gather(torch.tensor([self.count], device=self.device))[:, 0].tolist()
        """Rows of each rank."""
        self.total, self.first = sum(self.sizes), sum(self.sizes[: ranks.rank])

    def ids(self) -> Tensor:
        """(n,) int64 numbers of this rank's rows among all."""
        return torch.arange(self.first, self.first + self.count, device=self.device)

    def fetch(self, ids: Tensor) -> Tensor:
        """(m,) numbers among all rows, the same on every rank -> (m, D) float32 on every rank."""
        out = torch.zeros(len(ids), self.features, device=self.device)
        mine = torch.nonzero((ids >= self.first) & (ids < self.first + self.count))[:, 0]
        out[mine] = self.rows[ids[mine] - self.first].float()
        return self.ranks.sum(out)  # every row comes from one rank, the others add zero


def random_rows(points: Points, k: int, seed: int) -> Tensor:
    """(K,) numbers of K different rows, uniformly: those of the smallest random bits."""
    last = torch.iinfo(torch.int64).max
    best = torch.full((2, k), last, device=points.device)
    for ids in torch.split(points.ids(), 16 * WIDE_ROWS):
        best = _smallest(torch.cat([best, torch.stack([bits(ids, seed), ids])], dim=1), k)
    return _smallest(points.ranks.gather(best).transpose(0, 1).reshape(2, -1), k)[1]


def kmeans_plus_plus(points: Points, k: int, seed: int, largest_norm: float) -> Tensor:
    """(K, D) unit-norm rows: the first uniform, each next with probability proportional to 1 - cosine to the nearest
    chosen.

    Exponential races: the row with the smallest -log(u) / weight is chosen, so that each rank reads only its own rows.
    Sequential in K, one pass over the rows each. Source: Arthur and Vassilvitskii 2007, with 1 - cosine (half the
    squared distance of unit rows).
    """
    error = 2 * rounding_bound(points.features, points.device.type == "cuda") * largest_norm + 1e-6
    chosen = torch.zeros(k, points.features, device=points.device)
    nearest = torch.full((points.count,), -math.inf, device=points.device)
    ids = points.ids()
    for number in range(k):
        race = exponential(ids, seed, number)
        if number:
            _raise_to(nearest, points, chosen[number - 1])
            race = _weighted(race, nearest, points, chosen[:number], error)
        winner = torch.tensor([math.inf, -1.0], dtype=torch.float64, device=points.device)
        if points.count:
            first = race.argmin()
            winner = torch.stack([race[first], (first + points.first).double()])
        every = points.ranks.gather(winner)
        every = every[every[:, 1] >= 0]
        chosen[number] = normalize(points.fetch(every[every[:, 0].argmin(), 1].long()[None]), dim=1)[0]
    return chosen


def _weighted(race: Tensor, nearest: Tensor, points: Points, chosen: Tensor, error: float) -> Tensor:
    """Arrival times (n,) over weights; only the rows that may be chosen get a finite one, from products in float64."""
    weight = (1 - nearest.double()).clamp(min=0)
    surely = torch.where(weight > error, race / (weight - error), math.inf)
    bound = surely.min() if points.count else torch.tensor(math.inf, dtype=torch.float64, device=points.device)
    bound = -points.ranks.largest(-bound)
    if bool(bound.isinf()):  # every row equals a chosen one: all weights are equal
        return race
    times = torch.full_like(race, math.inf)
    for rows in torch.split(torch.nonzero(race / (weight + error) <= bound)[:, 0], WIDE_ROWS):
        exact = 1 - (points.rows[rows].double() @ chosen.double().T).amax(dim=1)
        times[rows] = race[rows] / exact.clamp(min=0)
    return times


def _raise_to(nearest: Tensor, points: Points, centroid: Tensor) -> None:
    """Raises (n,) to the products with one more centroid."""
    with ieee_float32():
        for rows, values in zip(torch.split(points.rows, WIDE_ROWS), torch.split(nearest, WIDE_ROWS), strict=True):
            torch.maximum(values, rows.float() @ centroid, out=values)


def split_largest(centroids: Tensor, counts: Tensor) -> Tensor:
    """Moves the i-th empty centroid next to that of the i-th largest cluster, a small step to either side. Source:
    faiss.
    """
    order = torch.argsort(counts, stable=True)
    donors = order.flip(0)
    replaced = ((counts[order] == 0) & (counts[donors] > 1))[:, None]
    step = torch.full((centroids.shape[1],), SPLIT_STEP, device=centroids.device)
    step[1::2] *= -1
    away, back = centroids[donors] * (1 + step), centroids[donors] * (1 - step)
    split = centroids.clone()
    split[donors] = torch.where(replaced, back, centroids[donors])
    split[order] = torch.where(replaced, away, split[order])
    return split


def reseed_farthest(
    centroids: Tensor, counts: Tensor, points: Points, assignments: Tensor, best: Tensor, largest_norm: float
) -> Tensor:
    """Moves the empty centroids to the rows farthest from their own centroids: the smallest product, then the lowest
    row.

    Args:
        centroids: (K, D), those that `assignments` (n,) and the products `best` (n,) belong to.
        counts: (K,) over all ranks.
    """
    empty = torch.nonzero(counts == 0)[:, 0]
    if not len(empty):
        return centroids
    error = 2 * rounding_bound(points.features, points.device.type == "cuda") * largest_norm
    padded = torch.cat([best, torch.full((len(empty),), math.inf, device=best.device)])
    lowest = points.ranks.gather(torch.topk(padded, len(empty), largest=False, sorted=True).values)
    bar = torch.topk(lowest.flatten(), len(empty), largest=False).values.max() + 2 * error
    worst = torch.full((2, len(empty)), math.inf, dtype=torch.float64, device=best.device)
    for rows in torch.split(torch.nonzero(best <= bar)[:, 0], WIDE_ROWS):
        exact = (points.rows[rows].double() * centroids[assignments[rows]].double()).sum(dim=1)
        worst = _smallest(torch.cat([worst, torch.stack([exact, (rows + points.first).double()])], dim=1), len(empty))
    chosen = _smallest(points.ranks.gather(worst).transpose(0, 1).reshape(2, -1), len(empty))[1].long()
    reseeded = centroids.clone()
    reseeded[empty] = normalize(points.fetch(chosen), dim=1)
    return reseeded


def match_clusters(assignments: Tensor, previous: Tensor, k: int, ranks: Ranks = ALONE) -> Tensor:
    """(n,) and (n,) ids -> (K,) int64: the new id of each cluster, such that most rows keep their previous id.

    Greedy by overlap: the pair of clusters that shares most rows first, then the next pair of unmatched clusters; at
    least half of what the best matching keeps, and all of it where clusters keep more than half of their rows.
    """
    overlap = ranks.sum(torch.bincount(assignments * k + previous, minlength=k * k))
    shared = torch.nonzero(overlap)[:, 0]
    shared = shared[torch.sort(overlap[shared], descending=True, stable=True).indices]
    renamed, free = [-1] * k, [True] * k
    for pair in shared.tolist():
        ours, theirs = divmod(pair, k)
        if renamed[ours] < 0 and free[theirs]:
            renamed[ours], free[theirs] = theirs, False
    left = iter([number for number in range(k) if free[number]])
    return torch.tensor([number if number >= 0 else next(left) for number in renamed], device=assignments.device)


def _smallest(pairs: Tensor, count: int) -> Tensor:
    """(2, M) keys and ids -> (2, count) of the smallest keys, ascending, the lowest id where keys are equal."""
    pairs = pairs[:, torch.sort(pairs[1], stable=True).indices]
    return pairs[:, torch.sort(pairs[0], stable=True).indices[:count]]
