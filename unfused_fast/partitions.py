"""What surrounds k-means: PCA and whitening before it, pseudo-labels from it, how clusterings look and compare.

N points, D features, K clusters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unfused_fast.clustering import KMeans, euclidean_kmeans
from unfused_fast.errors import UserError


class ClusterStatistics(NamedTuple):
    """What a log line says of a clustering; host numbers."""

    empty: int
    perplexity: float
    largest_share: float
    objective: float


def pca_whiten(points: Tensor, dim: int, whiten: bool = True) -> Tensor:
    """(N, D) -> (N, min(dim, rank)) principal components, of unit variance with `whiten`, then L2-normalised rows.

    Components with less than 1e-6 of the largest variance are dropped. Source: DECAR section 3; authors (PCA to 128).
    """
    centred = (points - points.mean(dim=0)).double()
    count = len(points)
    if count <= points.shape[1]:
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        variances, directions = singular.square() / count, directions.T
    else:
        variances, directions = torch.linalg.eigh(centred.T @ centred / count)
        variances, directions = variances.flip(0), directions.flip(1)
    kept = min(dim, int((variances > variances[0] * 1e-6).sum()))
    if not kept:
        raise UserError("all clips have the same features, so they cannot be clustered; was the teacher trained?")
    components = centred @ directions[:, :kept]
    if whiten:
        components = components / variances[:kept].sqrt()
    return torch.nn.functional.normalize(components, dim=1).float()


def pseudo_label_kmeans(
    features: Tensor, k: int, *, pca_dim: int, whiten: bool, iterations: int, n_init: int, seed: int
) -> KMeans:
    """(N, D) teacher features -> pseudo-labels: PCA, whitening, L2, then k-means. `pca_dim` 0: L2 only. Source:
    authors.
    """
    points = (
        pca_whiten(features, pca_dim, whiten) if pca_dim else torch.nn.functional.normalize(features.float(), dim=1)
    )
    generator = torch.Generator(device=points.device).manual_seed(seed)
    return euclidean_kmeans(points, k, iterations=iterations, n_init=n_init, generator=generator)


def normalised_mutual_information(first: Tensor, second: Tensor) -> float:
    """NMI of two assignments (N,): I(A; B) / sqrt(H(A) H(B)), 1 for equal partitions. Source: DECAR Eq. 3."""
    rows, columns = int(first.max()) + 1, int(second.max()) + 1
    joint = torch.bincount(first * columns + second, minlength=rows * columns).double().reshape(rows, columns) / len(
        first
    )
    row, column = joint.sum(dim=1), joint.sum(dim=0)
    information = torch.special.xlogy(joint, joint / (row[:, None] * column[None, :]).clamp(min=1e-300)).sum()
    entropies = -torch.special.xlogy(row, row).sum(), -torch.special.xlogy(column, column).sum()
    denominator = math.sqrt(float(entropies[0]) * float(entropies[1]))
    return float(information) / denominator if denominator > 0 else 1.0


def cluster_statistics(found: KMeans) -> ClusterStatistics:
    """Empty clusters, perplexity exp(H) of their sizes (K when even), share of the largest, objective; one host
    read.
    """
    shares = found.counts.double() / found.counts.sum()
    values = torch.stack(
        [
            (found.counts == 0).sum().double(),
            torch.exp(-torch.special.xlogy(shares, shares).sum()),
            shares.max(),
            found.objective.double(),
        ]
    ).tolist()
    return ClusterStatistics(int(values[0]), values[1], values[2], values[3])
