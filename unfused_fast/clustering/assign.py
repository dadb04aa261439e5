"""The assignment phase: rows of the memory bank become clusters, by `cluster.algo`.

N clips, n of this rank, D features, K clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.clustering.kmeans import Init, euclidean_kmeans, spherical_kmeans
from unfused_fast.clustering.pca import pca_whiten, resolve_pca_dim
from unfused_fast.clustering.pic import power_iteration_clustering
from unfused_fast.clustering.seeding import Points
from unfused_fast.config import Config
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.kernels.centroids import add_points, fixed_point_scale, normalise_centroids

BLOCK_ROWS = 4096
"""Rows that are converted to float32 unit rows at a time. Ours: 8 MB at D = 512."""


class Clustering(NamedTuple):
    """Clusters of the bank's rows; tensors on their device."""

    assignments: Tensor
    """(N,) int64, of all clips on every rank."""
    counts: Tensor
    """(K,) int64 clips in each cluster."""
    mean_cosine: Tensor
    """() float32: mean cosine of a row to the mean direction of its cluster, in the space that was clustered."""
    prototypes: Tensor | None
    """(K, D) unit centroids in the space of the bank; None where the principal components were clustered."""


def clustered_points(rows: Tensor, config: Config, ranks: Ranks = ALONE) -> Tensor:
    """(n, D) rows of the bank -> (n, D') unit rows in the space that `cluster.algo` clusters; `rows` themselves where
    they already are.
    """
    settings = config.cluster
    if settings.algo != "spherical":
        dim = resolve_pca_dim(settings.pca_dim, Points(rows, ranks).total)
        return pca_whiten(rows, dim, settings.whiten, ranks)
    return rows if config.model.l2_normalize else normalize(rows, dim=1)


def cluster_rows(
    rows: Tensor,
    k: int,
    config: Config,
    seed: int,
    start: Tensor | None = None,
    previous: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Clustering:
    """(n, D) rows of this rank, read in place -> the clustering of those of all `ranks`, in order of ranks; `pic` does
    not read k. Same rows and seed, same result, on any number of ranks.

    `start`, `previous`: centroids (K, D) and assignments (N,) of the last clustering, for `cluster.init = warm`.
    Spherical k-means reads the rows where they are. For `pca_kmeans` and `pic` every rank gets the principal components
    of all rows, and computes the same result: of 128 components at most unless `cluster.pca_dim` wants more.
    Source: paper section 3 (spherical); DECAR section 3 (PCA, whitening, L2, then k-means or PIC).
    """
    settings, held = config.cluster, Points(rows, ranks)
    generator = torch.Generator(device=rows.device).manual_seed(seed)
    points = clustered_points(rows, config, ranks)
    if settings.algo == "spherical":
        own = slice(held.first, held.first + held.count)
        init: Init | Tensor = settings.init if settings.init != "warm" else "random" if start is None else start
        found = spherical_kmeans(
            points,
            k,
            iterations=settings.iterations,
            init=init,
            empty=settings.empty,
            n_init=settings.n_init,
            generator=generator,
            backend=settings.backend,
            ranks=ranks,
            previous=previous[own] if previous is not None and settings.init == "warm" else None,
        )
        assignments = ranks.gather_parts(found.assignments, held.sizes)
        return Clustering(assignments, found.counts, found.objective, found.centroids)
    points = ranks.gather_parts(points, held.sizes)
    if settings.algo == "pca_kmeans":
        found = euclidean_kmeans(points, k, iterations=settings.iterations, n_init=settings.n_init, generator=generator)
        assignments, least = ranks.from_first(found.assignments), k
    else:
        found_ids = power_iteration_clustering(
            points,
            neighbours=settings.pic_neighbours,
            sigma=settings.pic_sigma,
            alpha=settings.pic_alpha,
            iterations=settings.pic_iterations,
        )
        assignments, least = ranks.from_first(found_ids), 0
    counts = torch.bincount(assignments, minlength=least)
    mean_cosine = own_similarities(points, assignments, len(counts)).mean()
    return Clustering(assignments, counts, mean_cosine, None)


def mean_directions(points: Tensor, assignments: Tensor, k: int) -> Tensor:
    """(N, D), (N,) -> (K, D) float32 unit means of each cluster's unit rows, 0 for an empty one. The sums are exact, so
    the order of the rows does not matter.
    """
    scale = fixed_point_scale(1.0)
    sums = torch.zeros(k, points.shape[1], dtype=torch.int64, device=points.device)
    counts = torch.bincount(assignments, minlength=k)
    for rows, ids in zip(torch.split(points, BLOCK_ROWS), torch.split(assignments, BLOCK_ROWS), strict=True):
        add_points(sums, normalize(rows.float(), dim=1), ids, scale)
    return normalise_centroids(sums, counts, torch.zeros(sums.shape, device=points.device))


def own_similarities(points: Tensor, assignments: Tensor, k: int) -> Tensor:
    """(N, D), (N,) -> (N,) float32 cosine of each row to the mean direction of its cluster."""
    directions = mean_directions(points, assignments, k)
    found = torch.empty(len(points), device=points.device)
    for rows, ids, own in zip(*(torch.split(part, BLOCK_ROWS) for part in (points, assignments, found)), strict=True):
        torch.sum(normalize(rows.float(), dim=1) * directions[ids], dim=1, out=own)
    return found
