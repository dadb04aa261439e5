"""k-means over embeddings, in place: spherical, and by squared distance.

N points, D features, K clusters. The N x K similarities never exist, and neither does a copy of the points.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unfused_fast.clustering.backends import Backend, Chosen, Ranges, nearest, resolve_backend, row_threads, update_sums
from unfused_fast.clustering.seeding import (
    Points,
    kmeans_plus_plus,
    match_clusters,
    random_rows,
    reseed_farthest,
    split_largest,
)
from unfused_fast.data import key
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.kernels.assign import assign_reference, resolve_near_ties, rounding_bound
from unfused_fast.kernels.centroids import centroid_sums_reference, fixed_point_scale, normalise_centroids

Init = Literal["random", "kmeans++"]
Empty = Literal["keep", "split", "reseed"]
NORM_ROWS = 2048
"""Rows whose norms are taken at a time. Ours: 4 MB of float32 at D = 512."""


class KMeans(NamedTuple):
    """A clustering; tensors on the points' device."""

    centroids: Tensor
    """(K, D) float32; unit norm when spherical."""
    assignments: Tensor
    """(N,) int64: id of each point's cluster; of this rank's points."""
    counts: Tensor
    """(K,) int64 points in each cluster, on all ranks."""
    objective: Tensor
    """() float32: mean cosine to the own centroid (spherical, larger is better) or inertia per point (smaller is
    better), on all ranks.
    """


@torch.no_grad()
def spherical_kmeans(
    points: Tensor,
    k: int,
    *,
    iterations: int = 10,
    init: Init | Tensor = "random",
    empty: Empty = "keep",
    n_init: int = 1,
    generator: torch.Generator | None = None,
    backend: Backend = "auto",
    ranks: Ranks = ALONE,
    previous: Tensor | None = None,
) -> KMeans:
    """(N, D) unit rows, read in place -> K clusters by cosine similarity.

    `iterations` times assignment and centroids of unit norm, then a last assignment. Source: paper section 3
    (assignment phase); authors (10 iterations, keep).

    The same result on every back end, number of ranks, threads and size of blocks: assignments are exact (near ties are
    recomputed in float64, ties go to the lowest id), cluster sums are integers, and the objective is computed from
    them. Only the norms of centroids depend on the device, in their last bit. backends.py describes what each library
    computes.

    Args:
        points: float32 or bfloat16; those of this rank.
        k: clusters over all ranks.
        iterations: 0 assigns to the initial centroids.
        init: `random` rows, `kmeans++` on 1 - cosine, or centroids (K, D), used for the first start.
        empty: an empty cluster keeps its centroid, takes half of one of the largest (`split`), or starts again from
            one of the points farthest from their centroid (`reseed`).
        n_init: starts; the one with the largest objective is kept, the earliest at a tie.
        generator: draws the seed; rank 0's is used.
        backend: torch, triton, faiss, cuml, or `auto` (see `resolve_backend`).
        ranks: each holds a part of the points.
        previous: (N,) earlier assignments; clusters are renumbered so that most points keep their id.

    With bfloat16 points centroids are rounded to bfloat16 before each assignment, so that tensor cores can multiply;
    their norm is then 1 to 2**-8.

    Raises:
        UserError: more clusters than points, points that are not finite, or a back end that cannot run here.
    """
    held = Points(points, ranks)
    _check_k(held.total, k)
    chosen = resolve_backend(backend, held.device, held.dtype)
    seed = _draw_seed(held, generator)
    largest_norm = _largest_norm(held)
    best: KMeans | None = None
    with ieee_float32(), row_threads(chosen, held.device) as ranges:
        for number in range(n_init):
            begin = init if number == 0 or isinstance(init, str) else "random"
            start = _initial(held, k, begin, key(seed, number), largest_norm)
            found = _lloyd(held, start, iterations, empty, chosen, largest_norm, ranges)
            best = found if best is None or bool(found.objective > best.objective) else best
    assert best is not None
    if previous is None:
        return best
    renamed = match_clusters(best.assignments, previous, k, ranks)
    order = torch.argsort(renamed)
    return KMeans(best.centroids[order], renamed[best.assignments], best.counts[order], best.objective)


def _lloyd(
    points: Points,
    centroids: Tensor,
    iterations: int,
    empty: Empty,
    backend: Chosen,
    largest_norm: float,
    ranges: Ranges,
) -> KMeans:
    """One start of spherical k-means."""
    scale = fixed_point_scale(largest_norm)
    k, device = len(centroids), points.device
    assignments = torch.empty(points.count, dtype=torch.int64, device=device)
    similarities = torch.empty(points.count if empty == "reseed" else 0, device=device)
    own_sums = torch.zeros(k, points.features, dtype=torch.int64, device=device)
    for iteration in range(iterations + 1):
        centroids = points.ranks.from_first(centroids.to(points.dtype).float().contiguous())
        table = centroids.to(points.dtype)
        # Triton's kernels are faster than copying the changes from the GPU
        from_zero = iteration == 0 or backend == "triton"
        if from_zero:
            own_sums.zero_()
        work = functools.partial(nearest, backend, points.rows, table, largest_norm)
        for part, (found, best) in ranges(points.count, work):
            update_sums(backend, own_sums, points.rows[part], None if from_zero else assignments[part], found, scale)
            assignments[part] = found
            if empty == "reseed":
                similarities[part] = best
        counts = points.ranks.sum(torch.bincount(assignments, minlength=k))
        sums = points.ranks.sum(own_sums.clone()) if points.ranks.together else own_sums
        if iteration == iterations:
            break
        updated = normalise_centroids(sums, counts, centroids)
        if empty == "split":
            updated = torch.nn.functional.normalize(split_largest(updated, counts), dim=1)
        elif empty == "reseed":
            farthest = reseed_farthest(centroids, counts, points, assignments, similarities, largest_norm)
            updated = torch.where((counts == 0)[:, None], farthest, updated)
        centroids = updated
    # sum of products with the own centroid, cluster by cluster: with exact sums it does not depend on ranks
    parts = zip(torch.split(sums, 32), torch.split(centroids, 32), strict=True)  # no K x D array of float64
    by_part = torch.stack([(total.double() * own).sum() for total, own in parts])
    objective = points.ranks.from_first(by_part.sum() / (scale * points.total))
    return KMeans(centroids, assignments, counts, objective.float())


def euclidean_kmeans(
    points: Tensor, k: int, *, iterations: int = 20, n_init: int = 1, generator: torch.Generator | None = None
) -> KMeans:
    """(N, D) -> K clusters by squared distance; the best of n_init starts from random rows; empty clusters split the
    largest.

    Nearest by distance is nearest by dot product after appending 1 to points and -|c|^2 / 2 to centroids, so the same
    search is used, near ties in float64 too. Source: authors (faiss k-means, 20 iterations).

    Raises:
        UserError: more clusters than points, or points that are not finite.
    """
    _check_k(len(points), k)
    points = points.float()
    norms = points.square().sum(dim=1)
    check_finite_rows(norms)
    lifted = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
    largest = float(norms.max().sqrt())
    scale, gap = fixed_point_scale(largest), _gap(lifted, largest)
    best: KMeans | None = None
    for _ in range(n_init):
        centroids = points[torch.randperm(len(points), device=points.device, generator=generator)[:k]]
        for iteration in range(iterations + 1):
            half = centroids.square().sum(dim=1, keepdim=True) / 2
            table = torch.cat([centroids, -half], dim=1)
            assignments, scores, second = assign_reference(lifted, table)
            assignments = resolve_near_ties(lifted, table, assignments, scores, second, gap)
            if iteration == iterations:
                break
            sums, counts = centroid_sums_reference(points, assignments, k, scale)
            means = (sums.double() / (scale * counts.clamp(min=1)[:, None])).float()
            centroids = split_largest(torch.where((counts > 0)[:, None], means, centroids), counts)
        inertia = (norms - 2 * scores).clamp(min=0).mean()
        found = KMeans(centroids, assignments, torch.bincount(assignments, minlength=k), inertia)
        best = found if best is None or bool(inertia < best.objective) else best
    assert best is not None
    return best


def _gap(lifted: Tensor, largest_norm: float) -> float:
    """Twice the error of a product of lifted points (N, D + 1) and centroids, which are about as long as the longest
    point at most.
    """
    longest = 1.01 * largest_norm  # of a split cluster's
    norms = math.hypot(longest, 1) * math.hypot(longest, longest**2 / 2)
    return 2 * rounding_bound(lifted.shape[1], lifted.is_cuda) * norms


def _check_k(points: int, k: int) -> None:
    if k < 1 or k > points:
        raise UserError(f"{k} clusters were requested, but there are {points} clips; want 1 to {points} clusters")


def _draw_seed(points: Points, generator: torch.Generator | None) -> int:
    device = points.device if generator is None else generator.device
    drawn = torch.randint(2**62, (1,), generator=generator, device=device).to(points.device)
    return int(points.ranks.from_first(drawn))


def _largest_norm(points: Points) -> float:
    """Largest norm of a row on any rank. Raises UserError for rows that are not finite."""
    largest = torch.zeros((), device=points.device)
    for rows in torch.split(points.rows, NORM_ROWS):  # norms of bfloat16 rows are those of a float32 copy
        if len(rows):
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
            largest = torch.maximum(largest, torch.where(norms.isfinite(), norms, torch.inf).max())
    found = points.ranks.largest(largest)
    check_finite_rows(found)
    return float(found)


def check_finite_rows(values: Tensor) -> None:
    """Raises UserError unless `values`, which depend on all rows, are finite."""
    if not bool(values.isfinite().all()):
        raise UserError("the rows to be clustered are not all finite; training has probably diverged: lower optim.lr")


def _initial(points: Points, k: int, init: Init | Tensor, seed: int, largest_norm: float) -> Tensor:
    if isinstance(init, Tensor):
        return torch.nn.functional.normalize(init.to(points.device, torch.float32), dim=1)
    if init == "kmeans++":
        return kmeans_plus_plus(points, k, seed, largest_norm)
    return torch.nn.functional.normalize(points.fetch(random_rows(points, k, seed)), dim=1)
