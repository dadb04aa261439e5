"""k-means over embeddings, in place: spherical, and by squared distance.

N points, D features, K clusters. The N x K similarities never exist: kernels.assign goes through the points in blocks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unfused_fast.errors import UserError
from unfused_fast.kernels.assign import assign, assign_reference
from unfused_fast.kernels.centroids import centroid_sums, centroid_sums_reference, normalise_centroids

Backend = Literal["auto", "torch", "triton"]
SPLIT_STEP = 1.0 / 1024
"""How far apart the two halves of a split cluster start, relative. Source: faiss Clustering.cpp (EPS)."""


class KMeans(NamedTuple):
    """A clustering; tensors on the points' device."""

    centroids: Tensor
    """(K, D) float32; unit norm when spherical."""
    assignments: Tensor
    """(N,) int64: id of each point's cluster."""
    counts: Tensor
    """(K,) int64 points in each cluster."""
    objective: Tensor
    """() float32: mean cosine to the own centroid (spherical, larger is better) or inertia per point (smaller is
    better).
    """


def resolve_backend(backend: Backend, device: torch.device) -> Literal["torch", "triton"]:
    """The back end that `auto` means on a device; raises UserError for a named one that cannot run there."""
    if backend == "triton" and device.type != "cuda":
        raise UserError(
            f"cluster.backend = triton, but the device is {device}: Triton kernels need a GPU; use torch or auto"
        )
    return ("triton" if device.type == "cuda" else "torch") if backend == "auto" else backend


def spherical_kmeans(
    points: Tensor,
    k: int,
    *,
    iterations: int = 10,
    init: Literal["random", "kmeans++"] | Tensor = "random",
    empty: Literal["keep", "split"] = "keep",
    generator: torch.Generator | None = None,
    backend: Backend = "auto",
) -> KMeans:
    """(N, D) unit rows, read in place -> K clusters by cosine similarity.

    `iterations` times assignment and centroids of unit norm, then a last assignment. `init`: random rows, k-means++ on
    1 - cosine, or given centroids (K, D). An empty cluster keeps its centroid, or (`split`) takes half of one of the
    largest. Same seed, same result. Source: paper section 3 (assignment phase); authors (10 iterations, keep).
    """
    _check_k(points, k)
    triton = resolve_backend(backend, points.device) == "triton"
    nearest, sums_of = (assign, centroid_sums) if triton else (assign_reference, centroid_sums_reference)
    centroids = _initial(points, k, init, generator)
    for _ in range(iterations):
        assignments, _ = nearest(points, centroids.to(points.dtype))
        sums, counts = sums_of(points, assignments, k)
        centroids = normalise_centroids(sums, counts, centroids)
        if empty == "split":
            centroids = torch.nn.functional.normalize(_split_largest(centroids, counts), dim=1)
    assignments, similarities = nearest(points, centroids.to(points.dtype))
    return KMeans(centroids, assignments, torch.bincount(assignments, minlength=k), similarities.mean())


def euclidean_kmeans(
    points: Tensor, k: int, *, iterations: int = 20, n_init: int = 1, generator: torch.Generator | None = None
) -> KMeans:
    """(N, D) -> K clusters by squared distance; the best of n_init starts from random rows; empty clusters split the
    largest.

    Nearest by distance is nearest by dot product after appending 1 to points and -|c|^2 / 2 to centroids, so the same
    blocks serve. Source: authors (faiss k-means, 20 iterations).
    """
    _check_k(points, k)
    points = points.float()
    lifted = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
    norms = points.square().sum(dim=1)
    best: KMeans | None = None
    for _ in range(n_init):
        centroids = _random_rows(points, k, generator)
        for iteration in range(iterations + 1):
            half = centroids.square().sum(dim=1, keepdim=True) / 2
            assignments, scores = assign_reference(lifted, torch.cat([centroids, -half], dim=1))
            if iteration == iterations:
                break
            sums, counts = centroid_sums_reference(points, assignments, k)
            means = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], centroids)
            centroids = _split_largest(means, counts)
        inertia = (norms - 2 * scores).clamp(min=0).mean()
        found = KMeans(centroids, assignments, torch.bincount(assignments, minlength=k), inertia)
        best = found if best is None or bool(inertia < best.objective) else best
    assert best is not None
    return best


def _check_k(points: Tensor, k: int) -> None:
    if k < 1 or k > len(points):
        raise UserError(
            f"{k} clusters were asked for, but there are {len(points)} clips; want 1 to {len(points)} clusters"
        )


def _random_rows(points: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    return points[torch.randperm(len(points), device=points.device, generator=generator)[:k]].float()


def _initial(points: Tensor, k: int, init: str | Tensor, generator: torch.Generator | None) -> Tensor:
    if isinstance(init, Tensor):
        if init.shape != (k, points.shape[1]):
            raise ValueError(f"init is {tuple(init.shape)}, want {(k, points.shape[1])}")
        return torch.nn.functional.normalize(init.to(points.device, torch.float32), dim=1)
    if init == "random":
        return torch.nn.functional.normalize(_random_rows(points, k, generator), dim=1)
    chosen = torch.empty(k, points.shape[1], device=points.device)
    chosen[0] = points[torch.randint(len(points), (1,), device=points.device, generator=generator)][0]
    distance = torch.full((len(points),), torch.inf, device=points.device)
    for number in range(1, k):  # each choice depends on the last: k-means++ is sequential in K
        distance = torch.minimum(distance, (1 - points.float() @ chosen[number - 1]).clamp(min=0))
        weights = distance if bool(distance.sum() > 0) else torch.ones_like(distance)
        chosen[number] = points[torch.multinomial(weights, 1, generator=generator)][0]
    return torch.nn.functional.normalize(chosen, dim=1)


def _split_largest(centroids: Tensor, counts: Tensor) -> Tensor:
    """Puts the i-th empty centroid beside that of the i-th largest cluster, each a small step apart. Source: faiss."""
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
