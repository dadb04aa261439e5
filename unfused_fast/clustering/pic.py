"""Power Iteration Clustering on a graph of nearest neighbours.   N points, D features, E edges, M neighbours a point.

DECAR's first clustering algorithm, in the form that its authors took from DeepCluster (arXiv 1807.05520); the idea is
Lin and Cohen's (ICML 2010). Edges to the M nearest neighbours weigh exp(-distance^2 / sigma^2); both directions add up
to W. Iterating v <- (1 - alpha) W v + alpha / N, scaled to sum 1, makes v large where points are dense; each point then
moves to the neighbour j of largest w_ij (v_j - v_i), and the points that reach the same maximum are a cluster. So the
number of clusters is a result. Ours: float64, because weights of far neighbours are about 1e-15, which float32 loses
next to alpha / N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32

GROUP = 64
"""Columns of a group, of which only the largest similarity is compared first. Ours: 5 groups of 64 are sorted, of
250,000 columns."""
BLOCK_VALUES = 1 << 24
"""Similarities held at once in the search for neighbours. Ours: 64 MiB; one block exists at a time."""


class Graph(NamedTuple):
    """A symmetric sparse (N, N) matrix of weights in CSR form, on the points' device."""

    starts: Tensor
    """(N + 1,) int64: the edges of point i are starts[i] to starts[i + 1]."""
    columns: Tensor
    """(E,) int64."""
    weights: Tensor
    """(E,) float64, positive."""

    @property
    def rows(self) -> Tensor:
        """(E,) int64 point at which each edge begins."""
        points = torch.arange(len(self.starts) - 1, device=self.starts.device)
        return torch.repeat_interleave(points, self.starts.diff())

    def __matmul__(self, vector: Tensor) -> Tensor:
        """(N,) float64 -> (N,); each row is summed in a fixed order, so the same input gives the same bits."""
        products = self.weights * vector[self.columns]
        return torch.segment_reduce(products, "sum", offsets=self.starts, initial=0.0)


@ieee_float32()
def nearest_neighbours(points: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(N, D) unit rows -> ids and squared distances (N, M), nearest first, without the point itself; exact.

    Similarities are made block by block of points. The M largest of a row are in the M groups of columns with the
    largest maxima, so only those groups are sorted: the rest is one pass of maxima. M is at most N - 1.
    """
    count = min(neighbours, len(points) - 1)
    ids = torch.empty(len(points), count, dtype=torch.int64, device=points.device)
    distances = torch.empty(len(points), count, dtype=torch.float64, device=points.device)
    rows = max(1, BLOCK_VALUES // len(points))
    columns = torch.nn.functional.pad(points, (0, 0, 0, -len(points) % GROUP)).T
    groups = columns.shape[1] // GROUP
    within = torch.arange(GROUP, device=points.device)
    for start in range(0, len(points), rows):
        similarities = points[start : start + rows] @ columns
        similarities[:, len(points) :] = -torch.inf
        similarities.diagonal(start).fill_(-torch.inf)
        best = similarities.view(-1, groups, GROUP).amax(dim=2).topk(min(count, groups), dim=1).indices
        candidates = (best[..., None] * GROUP + within).flatten(1)
        chosen = similarities.gather(1, candidates).topk(count, dim=1).indices
        ids[start : start + rows] = candidates.gather(1, chosen)
    # only of the neighbours, from differences in float64: in float32, 2 - 2 cos of close points is noise
    for start in range(0, len(points), rows):
        near = points[ids[start : start + rows]].double() - points[start : start + rows, None].double()
        distances[start : start + rows] = near.square().sum(dim=2)
    order = distances.argsort(dim=1, stable=True)
    return ids.gather(1, order), distances.gather(1, order)


def neighbour_graph(ids: Tensor, distances: Tensor, sigma: float) -> Graph:
    """(N, M) neighbours and squared distances -> W = A + A^T, A having exp(-distance^2 / sigma^2) at neighbours."""
    count, device = len(ids), ids.device
    points = torch.arange(count, device=device).repeat_interleave(ids.shape[1])
    # an underflow becomes the smallest positive number, so that no edge is lost
    weights = torch.exp(-distances.flatten() / sigma**2).clamp(min=torch.finfo(torch.float64).tiny)
    places = torch.cat([points * count + ids.flatten(), ids.flatten() * count + points])
    places, order = places.sort()
    both = weights.repeat(2)[order]
    kept, where = torch.unique_consecutive(places, return_inverse=True)
    # at most two terms, and a + b = b + a: the sum does not depend on their order
    summed = torch.zeros(len(kept), dtype=torch.float64, device=device).index_add_(0, where, both)
    starts = torch.zeros(count + 1, dtype=torch.int64, device=device)
    starts[1:] = torch.bincount(kept // count, minlength=count).cumsum(dim=0)
    return Graph(starts, kept % count, summed)


def power_iterations(graph: Graph, alpha: float, iterations: int) -> Tensor:
    """(N,) float64 of sum 1 after `iterations` times v <- L1((1 - alpha) W v + alpha / N), from 1 / N."""
    count = len(graph.starts) - 1
    start = torch.full((count,), 1.0 / count, dtype=torch.float64, device=graph.starts.device)
    vector = start
    for _ in range(iterations):
        vector = (1 - alpha) * (graph @ vector) + alpha * start
        vector = vector / vector.sum()
    return vector


def summits(graph: Graph, vector: Tensor) -> Tensor:
    """(N,) -> id of the point that each point reaches by moving to the neighbour j of largest positive
    w_ij (v_j - v_i), of the lowest id where several are equal.
    """
    rows, count = graph.rows, len(vector)
    gains = graph.weights * (vector[graph.columns] - vector[rows])
    best = torch.segment_reduce(gains, "max", offsets=graph.starts, initial=0.0)
    chosen = torch.where((gains == best[rows]) & (gains > 0), graph.columns, count)
    upward = torch.full((count,), count, device=vector.device).scatter_reduce(0, rows, chosen, "amin")
    points = torch.arange(count, device=vector.device)
    upward = torch.where(upward < count, upward, points)
    while not torch.equal(further := upward[upward], upward):  # v grows with every step, so there is no cycle
        upward = further
    return upward


def join_singletons(assignments: Tensor, neighbours: Tensor) -> Tensor:
    """(N,), (N, M) -> each cluster of one point is merged with the cluster of its nearest neighbour that is in a larger
    one.

    A point with only such neighbours stays alone. Source: DeepCluster (an option there, which is on).
    """
    sizes = torch.bincount(assignments)
    alone = sizes[assignments] == 1
    company = ~alone[neighbours]
    nearest = neighbours.gather(1, company.int().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(alone & company.any(dim=1), assignments[nearest], assignments)


def power_iteration_clustering(
    points: Tensor, *, neighbours: int = 5, sigma: float = 0.2, alpha: float = 0.001, iterations: int = 200
) -> Tensor:
    """(N, D) unit rows -> (N,) int64 clusters, numbered from 0 without gaps; the same input gives the same clusters.

    Never holds an (N, N) matrix. Source: authors of DECAR (5 neighbours, sigma 0.2, alpha 0.001, 200 iterations).

    Raises:
        UserError: fewer than two points.
    """
    if len(points) < 2:
        raise UserError(f"{len(points)} clip was to be clustered by cluster.algo = pic; want at least 2")
    ids, distances = nearest_neighbours(points.float(), neighbours)
    graph = neighbour_graph(ids, distances, sigma)
    tops = summits(graph, power_iterations(graph, alpha, iterations))
    joined = join_singletons(tops, ids)
    clusters: Tensor = torch.unique(joined, return_inverse=True)[1]
    return clusters
