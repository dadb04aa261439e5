"""Sums and counts of the points of each cluster, then centroids of unit norm.   N points, K clusters, D features.

The same input gives the same bits on every run of one device: points are sorted by cluster (stably) and added in that
order. `index_add_` is shorter, but on CUDA its atomics add in whatever order they arrive; a product with a one-hot
matrix keeps an order, but costs 2 N K D operations, as much as the assignment, where sorting and adding costs N D.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    import triton
    import triton.language as tl

BLOCK_BYTES = 8 * 2**20
"""Points that `centroid_sums_reference` widens to float32 at a time. Ours: as in `assign.py`, small beside the bank."""

CHUNK = 256
"""Most points of one cluster that one Triton program adds up. Ours: 250,000 points make about 1,000 chunks for the 132
multiprocessors of an H100 whatever the sizes of the clusters, and partial sums of 1/256 of the points' size."""


@torch.no_grad()
def centroid_sums_reference(points: Tensor, assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N, D), (N,), K -> (K, D) float32 sum and (K,) int64 count of the points of each cluster.

    A point whose assignment is outside 0..K-1 belongs to no cluster and is left out (then the counts add up to less
    than N); nothing is read back to the host to look for such points. Source: the centroid step of k-means in DECAR-v2
    (UnFuSeD, arXiv 2303.05668).

    Args:
        points: float32 or bfloat16, any strides.
        assignments: int64 on the device of `points`.
        k: clusters, at least 1.

    Raises:
        ValueError: wrong shape, dtype or device, or k < 1.
    """
    _check(points, assignments, k)
    n, d = points.shape
    sums = torch.zeros(k, d, dtype=torch.float32, device=points.device)
    counts = torch.zeros(k, dtype=torch.int64, device=points.device)
    block = max(k, BLOCK_BYTES // (4 * d))
    for start in range(0, n, block):
        order, starts = _by_cluster(assignments[start : start + block], k)
        # K + 2 bags, of which the first and the last hold the points left out.
        offsets = functional.pad(starts, (1, 0))
        rows = points[start : start + block].float()
        sums += functional.embedding_bag(order, rows, offsets, mode="sum")[1:-1]
        counts += starts.diff()
    return sums, counts


@functools.cache
def _build_kernels() -> tuple[Any, Any]:
    """The two Triton kernels, made at their first use so that importing this file loads no Triton."""
    global tl, triton  # Triton looks up the names a kernel uses among the globals of its file.
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _chunk_sums_kernel(
        points_ptr: tl.tensor,
        order_ptr: tl.tensor,
        chunk_cluster_ptr: tl.tensor,
        chunk_ends_ptr: tl.tensor,
        starts_ptr: tl.tensor,
        partial_ptr: tl.tensor,
        K: int,
        D: int,
        points_stride_n: int,
        points_stride_d: int,
        CHUNK_POINTS: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ) -> None:
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
            total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for first in range(start, stop, BLOCK_N):
                positions = first + tl.arange(0, BLOCK_N)
                position_exists = positions < stop
                rows = tl.load(order_ptr + positions, mask=position_exists, other=0)
                tile = tl.load(
                    points_ptr + rows[:, None] * points_stride_n + features[None, :] * points_stride_d,
                    mask=position_exists[:, None] & feature_exists[None, :],
                    other=0.0,
                )
                total += tile.to(tl.float32)
            tl.store(partial_ptr + chunk * D + features, tl.sum(total, axis=0), mask=feature_exists)

    @triton.jit  # type: ignore[untyped-decorator]
    def _cluster_sums_kernel(
        partial_ptr: tl.tensor,
        chunk_ends_ptr: tl.tensor,
        chunks_ptr: tl.tensor,
        sums_ptr: tl.tensor,
        D: int,
        BLOCK_C: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ) -> None:
        """A program adds BLOCK_D features of one cluster's chunks, in their order."""
        cluster = tl.program_id(0).to(tl.int64)
        features = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        feature_exists = features < D
        stop = tl.load(chunk_ends_ptr + cluster)
        start = stop - tl.load(chunks_ptr + cluster)
        total = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
        for first in range(start, stop, BLOCK_C):
            chunks = first + tl.arange(0, BLOCK_C)
            total += tl.load(
                partial_ptr + chunks[:, None] * D + features[None, :],
                mask=(chunks < stop)[:, None] & feature_exists[None, :],
                other=0.0,
            )
        tl.store(sums_ptr + cluster * D + features, tl.sum(total, axis=0), mask=feature_exists)

    return _chunk_sums_kernel, _cluster_sums_kernel


def centroid_sums(points: Tensor, assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `centroid_sums_reference`: the Triton kernels on CUDA tensors, the reference itself on others.

    Raises:
        ValueError: wrong shape, dtype or device, or k < 1.
        ImportError: CUDA tensors where Triton is not installed.
    """
    if points.is_cuda:
        return centroid_sums_triton(points, assignments, k)
    return centroid_sums_reference(points, assignments, k)


def centroid_sums_triton(points: Tensor, assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `centroid_sums_reference`; on CPU tensors only under Triton's interpreter (TRITON_INTERPRET=1).

    Each cluster is cut into chunks of at most `CHUNK` points, summed side by side, and then the chunks of a cluster in
    their order: a cluster that holds most points is spread over the device like any other.

    Raises:
        ValueError: wrong shape, dtype or device, k < 1, or CPU tensors without the interpreter.
        ImportError: Triton is not installed.
    """
    _check(points, assignments, k)
    chunk_sums_kernel, cluster_sums_kernel = _build_kernels()
    if not points.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"points are on {points.device}, but Triton runs on CUDA; call centroid_sums_reference")
    n, d = points.shape
    order, starts = _by_cluster(assignments, k)
    counts = starts.diff()
    chunks = (counts + CHUNK - 1) // CHUNK
    chunk_ends = chunks.cumsum(0)
    # How many chunks there are is known on the device alone; this many are enough for any cluster sizes.
    most_chunks = n // CHUNK + min(n, k)
    sums = torch.empty(k, d, dtype=torch.float32, device=points.device)
    partial = torch.empty(most_chunks, d, dtype=torch.float32, device=points.device)
    chunk_cluster = torch.searchsorted(chunk_ends, torch.arange(most_chunks, device=points.device), right=True)
    block_d = min(128, max(16, triton.next_power_of_2(d)))
    feature_blocks = triton.cdiv(d, block_d)
    with torch.cuda.device(points.get_device()):
        if n:
            chunk_sums_kernel[(most_chunks, feature_blocks)](
                points,
                order,
                chunk_cluster,
                chunk_ends,
                starts,
                partial,
                k,
                d,
                points.stride(0),
                points.stride(1),
                CHUNK_POINTS=CHUNK,
                BLOCK_N=32,
                BLOCK_D=block_d,
            )
        cluster_sums_kernel[(k, feature_blocks)](partial, chunk_ends, chunks, sums, d, BLOCK_C=16, BLOCK_D=block_d)
    return sums, counts


@torch.no_grad()
def normalise_centroids(sums: Tensor, counts: Tensor, previous: Tensor) -> Tensor:
    """(K, D), (K,), (K, D) -> (K, D) float32 centroids: each sum at unit norm, or `previous` where none can be had.

    That is where a cluster is empty, and where its points cancel to a sum of norm zero. Source: spherical k-means.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    if sums.ndim != 2 or previous.shape != sums.shape or counts.shape != sums.shape[:1]:
        raise ValueError(
            f"sums {tuple(sums.shape)}, counts {tuple(counts.shape)}, previous {tuple(previous.shape)}, "
            "but this takes (K, D), (K,), (K, D)"
        )
    if sums.dtype != torch.float32 or previous.dtype != torch.float32 or counts.dtype != torch.int64:
        raise ValueError(
            f"sums {sums.dtype}, counts {counts.dtype}, previous {previous.dtype}, "
            "but this takes float32, int64, float32"
        )
    if not sums.device == counts.device == previous.device:
        devices = f"sums on {sums.device}, counts on {counts.device}, previous on {previous.device}"
        raise ValueError(f"{devices}; move them to one device")
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    usable = (counts > 0)[:, None] & (norms > 0)
    return torch.where(usable, sums / norms, previous)


def _by_cluster(assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N,) -> (N,) rows in order of cluster, then of index; (K + 1,) where each cluster starts therein, and the end."""
    ordered, order = torch.sort(assignments, stable=True)
    return order, torch.searchsorted(ordered, torch.arange(k + 1, device=assignments.device))


def _check(points: Tensor, assignments: Tensor, k: int) -> None:
    if points.ndim != 2 or points.shape[1] == 0 or assignments.shape != points.shape[:1]:
        raise ValueError(
            f"points {tuple(points.shape)} and assignments {tuple(assignments.shape)}, but this takes (N, D) and (N,) "
            "with D of 1 or more"
        )
    if k < 1:
        raise ValueError(f"k is {k}, but there must be at least one cluster")
    if points.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"points are {points.dtype}, but this takes float32 or bfloat16; cast them")
    if assignments.dtype != torch.int64:
        raise ValueError(f"assignments are {assignments.dtype}, but this takes int64; cast them: assignments.long()")
    if points.device != assignments.device:
        raise ValueError(f"points on {points.device}, assignments on {assignments.device}; move them to one device")
