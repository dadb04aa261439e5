"""Sums and counts of the points of each cluster, then centroids of unit norm.   N points, K clusters, D features.

Sums are exact: every number is rounded towards zero to a multiple of 1 / scale, and those multiples are added as
integers. So the order does not matter, and the result is the same on any device, with any number of ranks or threads
and any block size; and what moves from cluster to cluster can be added and subtracted without drift. At scale 2**30
float32 numbers of 2**-7 and more lose nothing, smaller ones less than 2**-30.
"""

from __future__ import annotations

import bisect
import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from unfused_fast.kernels.assign import block_rows

if TYPE_CHECKING:
    import triton
    import triton.language as tl

SCALE_BITS = 30
"""log2 of the scale for rows of norm 1. Ours: the sums of 2**33 such rows fit an int64, those of a block a float64."""
MOST_ROWS = 2**22
"""Of a block, whose float64 sums of numbers below 2**31 are then exact."""

CHUNK = 256
"""Most points of one cluster that one Triton program adds up. Ours: 250,000 points make about 1,000 chunks for the 132
multiprocessors of an H100 whatever the sizes of the clusters, and partial sums of 1/256 of the points' size."""
LAUNCH = {"enable_fp_fusion": False}


def fixed_point_scale(largest_norm: float) -> float:
    """Largest norm of a row -> the power of two that takes every number of the rows to at most about 2**SCALE_BITS.

    A thousandth more than a power of two counts as that power, so that rows normalised in float32 all have 2**30.

    Raises:
        ValueError: a norm so large or small that the scale is no normal float32.
    """
    exponent = SCALE_BITS - math.ceil(math.log2(largest_norm * 0.999)) if largest_norm > 0 else SCALE_BITS
    if not -90 <= exponent <= 126:
        raise ValueError(f"the largest norm of a row is {largest_norm:g}; scale the rows to between 1e-28 and 1e36")
    return 2.0**exponent


@torch.no_grad()
def centroid_sums_reference(points: Tensor, assignments: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    """(N, D), (N,), K -> (K, D) int64 sum, in units of 1 / scale, and (K,) int64 count of the points of each cluster.

    Source: the centroid step of k-means in DECAR-v2 (UnFuSeD, arXiv 2303.05668).

    Args:
        points: float32 or bfloat16, any strides, each number less than 2**31 / scale in size.
        assignments: int64 from 0 to K - 1, on the device of `points`.
        k: clusters, at least 1.
        scale: a power of two, from `fixed_point_scale`.
    """
    sums = torch.zeros(k, points.shape[1], dtype=torch.int64, device=points.device)
    add_points(sums, points, assignments, scale)
    return sums, torch.bincount(assignments, minlength=k)


@torch.no_grad()
def move_points(sums: Tensor, points: Tensor, old: Tensor, new: Tensor, scale: float) -> None:
    """Changes the sums of assignments `old` (N,) into those of `new` (N,), in place, by the points that moved.

    Costs two additions for a point that moved and none for the others. Ours: exact sums allow it, and from one
    iteration of k-means to the next ever fewer points move.
    """
    moved = torch.nonzero(old != new)[:, 0]
    signs = torch.ones(2 * len(moved), dtype=torch.float64, device=points.device)
    signs[len(moved) :] = -1
    add_points(sums, points, torch.cat([new[moved], old[moved]]), scale, moved.repeat(2), signs)


@torch.no_grad()
def add_points(
    sums: Tensor,
    points: Tensor,
    clusters: Tensor,
    scale: float,
    rows: Tensor | None = None,
    signs: Tensor | None = None,
) -> None:
    """Adds rows (M,) of points (N, D), all if None, times their signs (M,), if given, to the sums (K, D) of their
    clusters (M,), in place.

    Rows are taken in order of cluster, so that a block of them concerns few clusters, however many there are.
    """
    k, d = sums.shape
    order, starts = _by_cluster(clusters, k)
    ends = starts.tolist()
    rows = order if rows is None else rows[order]
    signs = None if signs is None else signs[order]
    block = max(1, min(len(rows), block_rows(points.device, 8 * d), MOST_ROWS))
    wide = torch.empty(block, d, dtype=torch.float64, device=points.device)
    for start in range(0, len(rows), block):
        stop = min(start + block, len(rows))
        # times a power of two, exact in the points' own dtype; int() rounds towards zero, at a tenth of trunc's time
        values = wide[: stop - start].copy_(points.index_select(0, rows[start:stop]).mul_(scale).int())
        first, last = bisect.bisect_right(ends, start) - 1, bisect.bisect_left(ends, stop)
        bags = functional.embedding_bag(
            torch.arange(stop - start, device=points.device),
            values,
            (starts[first:last] - start).clamp_(min=0),
            mode="sum",
            per_sample_weights=None if signs is None else signs[start:stop],
        )
        sums[first:last] += bags.long()


@functools.cache
def _build_kernels() -> tuple[Any, Any]:
    """The two Triton kernels, made at their first use so that importing this file loads no Triton."""
    global tl, triton  # Triton looks up the names a kernel uses among the globals of its file.
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _chunk_sums_kernel(  # type: ignore[no-untyped-def]
        points_ptr, order_ptr, chunk_cluster_ptr, chunk_ends_ptr, starts_ptr, partial_ptr, K, D, scale,
        CHUNK_POINTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """A program adds BLOCK_D features of the points of one chunk, a run of one cluster's sorted points."""
        chunk = tl.program_id(0).to(tl.int64)
        features = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        feature_exists = features < D
        cluster = tl.load(chunk_cluster_ptr + chunk)
        if cluster < K:  # else a chunk beyond those that this set of cluster sizes needs
            # Chunks of a cluster end where its last point does, so the first may be the short one.
            chunks_left = tl.load(chunk_ends_ptr + cluster) - chunk
            stop = tl.load(starts_ptr + cluster + 1) - (chunks_left - 1) * CHUNK_POINTS
            start = tl.maximum(tl.load(starts_ptr + cluster), stop - CHUNK_POINTS)
            total = tl.zeros((BLOCK_N, BLOCK_D), tl.int64)
            for first in range(start, stop, BLOCK_N):
                positions = first + tl.arange(0, BLOCK_N)
                position_exists = positions < stop
                rows = tl.load(order_ptr + positions, mask=position_exists, other=0)
                exists = position_exists[:, None] & feature_exists[None, :]
                tile = tl.load(points_ptr + rows[:, None] * D + features[None, :], mask=exists, other=0.0)
                total += (tile.to(tl.float32) * scale).to(tl.int64)  # towards zero
            tl.store(partial_ptr + chunk * D + features, tl.sum(total, axis=0), mask=feature_exists)

    @triton.jit  # type: ignore[untyped-decorator]
    def _cluster_sums_kernel(  # type: ignore[no-untyped-def]
        partial_ptr, chunk_ends_ptr, chunks_ptr, sums_ptr, D, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr
    ):
        """A program adds BLOCK_D features of one cluster's chunks, in their order."""
        cluster = tl.program_id(0).to(tl.int64)
        features = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        feature_exists = features < D
        stop = tl.load(chunk_ends_ptr + cluster)
        start = stop - tl.load(chunks_ptr + cluster)
        total = tl.zeros((BLOCK_C, BLOCK_D), tl.int64)
        for first in range(start, stop, BLOCK_C):
            chunks = first + tl.arange(0, BLOCK_C)
            exists = (chunks < stop)[:, None] & feature_exists[None, :]
            total += tl.load(partial_ptr + chunks[:, None] * D + features[None, :], mask=exists, other=0)
        tl.store(sums_ptr + cluster * D + features, tl.sum(total, axis=0), mask=feature_exists)

    return _chunk_sums_kernel, _cluster_sums_kernel


def centroid_sums_triton(points: Tensor, assignments: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    """As `centroid_sums_reference`, bit for bit; on CPU tensors only under Triton's interpreter (TRITON_INTERPRET=1).

    Each cluster is cut into chunks of at most `CHUNK` points, summed in parallel, and then the chunks of a cluster in
    their order: a cluster that holds most points is spread over the device like any other.
    """
    chunk_sums_kernel, cluster_sums_kernel = _build_kernels()
    n, d = points.shape
    order, starts = _by_cluster(assignments, k)
    counts = starts.diff()
    chunks = (counts + CHUNK - 1) // CHUNK
    chunk_ends = chunks.cumsum(0)
    # How many chunks there are is known on the device alone; this many are enough for any cluster sizes.
    most_chunks = n // CHUNK + min(n, k)
    sums = torch.empty(k, d, dtype=torch.int64, device=points.device)
    partial = torch.empty(most_chunks, d, dtype=torch.int64, device=points.device)
    chunk_cluster = torch.searchsorted(chunk_ends, torch.arange(most_chunks, device=points.device), right=True)
    block_d = min(128, max(16, triton.next_power_of_2(d)))
    feature_blocks = triton.cdiv(d, block_d)
    with torch.cuda.device(points.get_device()):
        if n:
            tensors = points.contiguous(), order, chunk_cluster, chunk_ends, starts, partial
            chunk_sums_kernel[(most_chunks, feature_blocks)](*tensors, k, d, scale, CHUNK, 32, block_d, **LAUNCH)
        cluster_sums_kernel[(k, feature_blocks)](partial, chunk_ends, chunks, sums, d, 16, block_d, **LAUNCH)
    return sums, counts


@torch.no_grad()
def normalise_centroids(sums: Tensor, counts: Tensor, previous: Tensor) -> Tensor:
    """(K, D), (K,), (K, D) -> (K, D) float32 centroids: each sum at unit norm, or `previous` where there is none.

    That is where a cluster is empty, and where its points cancel to a sum of norm zero. The unit of the sums does not
    matter; norms are taken in float64. Source: spherical k-means.

    Args:
        sums: int64, as `centroid_sums_reference` gives them.
        counts: int64.
        previous: float32.
    """
    centroids = torch.empty_like(previous)
    block = block_rows(sums.device, 8 * sums.shape[1])  # in pieces, so that no K x D array of float64 is made
    for total, count, before, out in zip(
        *(torch.split(part, block) for part in (sums, counts, previous, centroids)), strict=True
    ):
        wide = total.double()
        norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        usable = (count > 0)[:, None] & (norms > 0)
        out.copy_(torch.where(usable, wide.div_(norms).float(), before))
    return centroids


def _by_cluster(assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N,) -> (N,) rows in order of cluster, then of index; (K + 1,) where each cluster starts therein, and the end."""
    ordered, order = torch.sort(assignments, stable=True)
    return order, torch.searchsorted(ordered, torch.arange(k + 1, device=assignments.device))
