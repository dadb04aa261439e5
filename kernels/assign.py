"""Nearest centroid by inner product (cosine, when rows have unit norm).   N points, K centroids, D features."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unfused_fast.float32 import ieee_float32

if TYPE_CHECKING:
    import triton
    import triton.language as tl

BLOCK_BYTES = {"cpu": 2**19, "cuda": 2**26}
"""Scratch memory by device. Ours: on a CPU it fits a core's own cache; 256 rows at D = K = 512 were 5 to 10 % faster
than 512 to 2048. On a GPU a block costs some launches whatever its size: 250,000 rows at D = K = 512 are 8 blocks of
scores and, if all are near ties, 31 of float64, where blocks for a cache would be 977 and 3,907."""
LEAST_ROWS = 128
"""Rows scored at a time however many centroids there are. Ours: 32 took 1.6 times as long at K = 4096."""

TIE = 2.0**-40
"""Products this much of the row's norm apart are equal. Ours: far above float64's rounding, far below float32's."""

TILES = {torch.bfloat16: (128, 128, 64), torch.float32: (64, 128, 32)}
"""BLOCK_N, BLOCK_K and BLOCK_D of the kernel. Ours: tiles that compile for A100 and H100 with three stages in at most
96 KiB of shared memory."""
LAUNCH = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
"""Fusion is what Triton does by default, but 3.10 warns unless it is set."""


def rounding_bound(features: int, tensor_cores: bool) -> float:
    """Bound on the error of a float32 inner product of two vectors of norm 1.

    D u with u = 2**-24 holds for any order of summation (Higham, Accuracy and Stability, section 3.1). Tensor cores
    truncate where they add, and three TF32 products leave out the smallest of four: D 2**-22 covers both.
    """
    return features * (2.0**-22 if tensor_cores else 2.0**-24)


def block_rows(device: torch.device, row_bytes: int, least: int = 1) -> int:
    """Rows of so many bytes that are computed at a time on a device, `least` or more."""
    return max(least, BLOCK_BYTES[device.type] // row_bytes)


def assign_reference(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D), (K, D) -> (N,) int64 index and (N,) float32 value of the largest inner product, the lowest index at a
    tie, and (N,) float32 value of the second largest (-inf where K = 1).

    Products are accumulated in float32 on every device, whatever torch's global matmul precision or autocast say. The
    N x K matrix never exists: some rows are scored at a time. Source: k-means assignment of DECAR-v2 (UnFuSeD,
    arXiv 2303.05668), written as in `main_deepclusterv2.py` of SwAV. The second value is ours: it shows which rows
    `resolve_near_ties` must recompute.

    Args:
        points: float32 or bfloat16, any strides, finite.
        centroids: the dtype and device of `points`; at least one.
    """
    with ieee_float32():
        return best_two(points, centroids)


@torch.no_grad()
def best_two(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `assign_reference`, for callers that are inside `ieee_float32`: for example threads that share the rows,
    of which none may change a global setting.
    """
    n, d = points.shape
    k = centroids.shape[0]
    widen = points.dtype != torch.float32
    block = max(1, min(n, block_rows(points.device, 4 * (k + d if widen else k), LEAST_ROWS)))
    device = points.device
    assignments = torch.empty(n, dtype=torch.int64, device=device)
    best, second = torch.empty(2, n, dtype=torch.float32, device=device)
    scores = torch.empty(block, k, dtype=torch.float32, device=device)
    wide = torch.empty(block if widen else 0, d, dtype=torch.float32, device=device)
    centroids_DK = centroids.detach().float().T
    for start in range(0, n, block):
        stop = min(start + block, n)
        rows = wide[: stop - start].copy_(points[start:stop]) if widen else points[start:stop]
        # out= keeps the block in place, and autocast does not change such a call.
        tile = torch.mm(rows, centroids_DK, out=scores[: stop - start])
        index = assignments[start:stop]
        if device.type == "cpu":  # torch.max over the last dimension takes ten times as long there
            tile.numpy().argmax(axis=1, out=index.numpy())
            best[start:stop] = tile.gather(1, index[:, None])[:, 0]
        else:
            torch.max(tile, dim=1, out=(best[start:stop], index))
        tile.scatter_(1, index[:, None], float("-inf"))
        torch.amax(tile, dim=1, out=second[start:stop])
    return assignments, best, second


@torch.no_grad()
def resolve_near_ties(
    points: Tensor, centroids: Tensor, assignments: Tensor, best: Tensor, second: Tensor, gap: float
) -> Tensor:
    """Recomputes in float64, in place, every assignment (N,) whose best two products are closer than `gap`; returns it.

    With a gap of twice the error of a product the result is the exact nearest centroid, whatever computed the products,
    in any order and on any number of ranks; products closer than `TIE` of the row's own norm count as equal, and
    the lowest index wins. Ours: back ends differ only in rounding, and few rows are that close.

    Args:
        points: (N, D) float32 or bfloat16.
        centroids: (K, D), of any floating dtype.
        assignments, best, second: as `assign_reference` gives them.
        gap: in units of the products.
    """
    close = torch.nonzero(best - second <= gap)[:, 0]
    if not len(close):
        return assignments
    k, d = centroids.shape
    pieces = torch.split(centroids, block_rows(points.device, 16 * d, 64))
    for ids in torch.split(close, block_rows(points.device, 8 * (k + d))):
        wide = points[ids].double()
        # in pieces, so that no K x D array of float64 is made, by several threads at once
        scores = torch.cat([wide @ piece.double().T for piece in pieces], dim=1)
        bar = scores.amax(dim=1) - TIE * torch.linalg.vector_norm(wide, dim=1)
        # argmax of a mask is its first True on the CPU and on CUDA alike, but only of integers is that promised: count
        # down instead, so that the lowest index has the largest number.
        order = torch.arange(k, 0, -1, device=points.device)
        assignments[ids] = ((scores >= bar[:, None]) * order).argmax(dim=1)
    return assignments


@functools.cache
def _build_assign_kernel() -> Any:
    """The Triton kernel, made at its first use so that importing this file loads no Triton."""
    global tl, triton  # Triton looks up the names a kernel uses among the globals of its file.
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _assign_kernel(  # type: ignore[no-untyped-def]
        points_ptr, centroids_ptr, assignments_ptr, best_ptr, second_ptr, N, K, D,
        BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr,
    ):  # fmt: skip
        """A program owns BLOCK_N points and loops over the centroids, keeping the best two so far of each point."""
        rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        row_exists = rows < N
        best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        second = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        best_index = tl.zeros((BLOCK_N,), tl.int32)
        for first_k in range(0, K, BLOCK_K):
            columns = first_k + tl.arange(0, BLOCK_K)
            column_exists = columns < K
            scores = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
            for first_d in range(0, D, BLOCK_D):
                features = first_d + tl.arange(0, BLOCK_D)
                feature_exists = features < D
                point_exists = row_exists[:, None] & feature_exists[None, :]
                point_tile = tl.load(points_ptr + rows[:, None] * D + features[None, :], mask=point_exists, other=0.0)
                entry_exists = feature_exists[:, None] & column_exists[None, :]
                entries = columns[None, :].to(tl.int64) * D + features[:, None]
                centroid_tile = tl.load(centroids_ptr + entries, mask=entry_exists, other=0.0)
                if INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16: triton issue 11584
                    point_tile = point_tile.to(tl.float32)
                    centroid_tile = centroid_tile.to(tl.float32)
                # of float32 alone, which one TF32 product would round to 10 bits
                scores = tl.dot(point_tile, centroid_tile, scores, input_precision="tf32x3")
            scores = tl.where(column_exists[None, :], scores, float("-inf"))
            top, top_column = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
            rest = tl.where(tl.arange(0, BLOCK_K)[None, :] == top_column[:, None], float("-inf"), scores)
            second = tl.maximum(tl.maximum(second, tl.max(rest, axis=1)), tl.minimum(best, top))
            better = top > best  # strictly: an equal, later centroid does not win
            best = tl.where(better, top, best)
            best_index = tl.where(better, first_k + top_column, best_index)
        tl.store(assignments_ptr + rows, best_index.to(tl.int64), mask=row_exists)
        tl.store(best_ptr + rows, best, mask=row_exists)
        tl.store(second_ptr + rows, second, mask=row_exists)

    return _assign_kernel


def assign_triton(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `assign_reference`, in one kernel; on CPU tensors only under Triton's interpreter (TRITON_INTERPRET=1).

    Products are within `rounding_bound` of the exact ones, on tensor cores: of float32 each number is a sum of two TF32
    ones, which takes three products.
    """
    kernel = _build_assign_kernel()
    n, d = points.shape
    k = centroids.shape[0]
    assignments = torch.empty(n, dtype=torch.int64, device=points.device)
    best, second = torch.empty(2, n, dtype=torch.float32, device=points.device)
    if n == 0:
        return assignments, best, second
    block_n, block_k, block_d = TILES[points.dtype]
    block_k = min(block_k, max(16, triton.next_power_of_2(k)))
    tensors = points.contiguous(), centroids.contiguous(), assignments, best, second
    sizes = n, k, d, block_n, block_k, block_d
    with torch.cuda.device(points.get_device()):
        kernel[(triton.cdiv(n, block_n),)](*tensors, *sizes, triton.knobs.runtime.interpret, **LAUNCH)
    return assignments, best, second
