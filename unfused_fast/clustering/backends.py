"""Who computes nearest centroids and cluster sums: torch, our Triton kernels, faiss or cuML.

N points, D features, K clusters. A back end gives the two largest products of each row in float32; rows in which they
differ by less than the rounding error are recomputed in float64 (kernels/assign.py), and cluster sums are exact
integers (kernels/centroids.py). So every back end gives the same assignments, whatever its order of summation.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.kernels.assign import assign_triton, best_two, resolve_near_ties, rounding_bound
from unfused_fast.kernels.centroids import add_points, centroid_sums_triton, move_points
from unfused_fast.optional import importing, missing_compiler, present, triton_runs

Backend = Literal["auto", "torch", "triton", "faiss", "cuml"]
Chosen = Literal["torch", "triton", "faiss", "cuml"]
LIBRARY_ROWS = 16384
"""Rows passed to faiss or cuML at a time. Ours: their results (24 bytes a row) and float32 copies stay small."""
CPU_ROWS = 2048
"""The same for faiss on a CPU, per thread: the products of these rows with 512 centroids are 4 MB."""
THREAD_ROWS = 4096
"""Fewest rows for which a thread pays off. Ours: some 10 ms of products at D = K = 512."""
FAISS_TEMPORARY_BYTES = 64 * 2**20
"""Scratch memory of faiss on a GPU. Ours: the default is 1.5 GB, never released."""


def resolve_backend(backend: Backend, device: torch.device, dtype: torch.dtype = torch.float32) -> Chosen:
    """The choice of `auto` for rows of a dtype on a device: triton on a GPU where it runs; faiss, where installed, for
    float32 rows on a CPU (it would have to convert others); else torch.

    Raises:
        UserError: the requested one is not installed or cannot run here, or an installed one does not load.
    """
    if backend == "auto" and device.type == "cuda":
        return "triton" if triton_runs() else "torch"
    if backend == "auto":
        if dtype != torch.float32:
            return "torch"
        if not present("faiss"):
            console.once("cluster.backend: auto is torch, because faiss is not installed")
            return "torch"
        backend = "faiss"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend in ("triton", "cuml") and device.type != "cuda" and not interpreted:
        raise UserError(f"cluster.backend = {backend}, but the device is {device}: it needs a GPU; use torch or auto")
    if backend == "triton" and not interpreted and (missing := missing_compiler("C")) is not None:
        raise UserError(f"cluster.backend = triton needs {missing}, or use torch or auto")
    if backend != "torch":
        extra = "'.[cuda13]' or '.[cuda12]'" if device.type == "cuda" or backend != "faiss" else "'.[cpu]'"
        with importing(backend, backend, f"cluster.backend = {backend}", f"pip install {extra}, or use torch"):
            library = importlib.import_module(backend)
        if backend == "faiss" and device.type == "cuda" and not hasattr(library, "StandardGpuResources"):
            raise UserError(
                "cluster.backend = faiss, but this faiss has no GPU support; install faiss-gpu, or use auto"
            )
    return backend


def nearest(
    backend: Chosen, points: Tensor, centroids: Tensor, largest_norm: float, part: slice
) -> tuple[Tensor, Tensor]:
    """Of a part of (N, D), and (K, D) of one dtype: (n,) int64 nearest centroid by inner product, and (n,) float32
    product.

    The caller is inside `ieee_float32`, once for all threads. The first is exact: the lowest index among the products
    that float64 finds equal. The second has the rounding of the back end.

    Args:
        backend: from `resolve_backend`.
        points: float32 or bfloat16.
        centroids: norms about 1.
        largest_norm: of a row of `points`, at least.
    """
    points = points[part]
    found, best, second = _TOP_TWO[backend](points, centroids)
    tensor_cores = points.is_cuda or backend == "triton"
    gap = 2 * rounding_bound(points.shape[1], tensor_cores) * largest_norm * 1.01  # bfloat16 centroids exceed norm 1
    return resolve_near_ties(points, centroids, found, best, second, gap), best


def update_sums(backend: Chosen, sums: Tensor, points: Tensor, old: Tensor | None, new: Tensor, scale: float) -> None:
    """Updates int64 `sums` (K, D) from assignments `old` (N,), or from none, to `new`, in place."""
    if old is not None:
        move_points(sums, points, old, new, scale)
    elif backend == "triton":
        sums += centroid_sums_triton(points, new, len(sums), scale)[0]
    else:
        add_points(sums, points, new, scale)


Search = Callable[[Tensor], Iterable[Tensor]]
"""search(rows) gives the min(2, K) largest products (n, 2), in order, and the centroids (n, 2) they belong to."""
Found = tuple[Tensor, Tensor]
Ranges = Callable[[int, Callable[[slice], Found]], Iterator[tuple[slice, Found]]]
"""ranges(n, work) gives (part, work(part)) for parts that make up 0..n."""


@contextlib.contextmanager
def row_threads(backend: Chosen, device: torch.device) -> Iterator[Ranges]:
    """As many threads as torch has; each takes a part of the rows and uses one thread inside torch's operations.

    Only for torch on a CPU; the other back ends get all rows in one call. Assignments and sums are exact, so the result
    does not depend on it. Ours: a pass consists of hundreds of short products. With threads synchronised after each
    one, a core that is busy elsewhere (decoding audio, for example) delays all the others every time.
    """
    count = torch.get_num_threads() if backend == "torch" and device.type == "cpu" else 1
    if count == 1:
        yield lambda n, work: ((part, work(part)) for part in [slice(0, n)])
        return
    ready = threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # for this thread and for those that start later, which is why ready.wait() comes next
        ready.wait()

    with ThreadPoolExecutor(count, initializer=begin) as pool:
        for _ in range(count):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(count)

        def share(n: int, work: Callable[[slice], Found]) -> Iterator[tuple[slice, Found]]:
            # four parts a thread: a delayed thread leaves parts to the others
            size = max(THREAD_ROWS, -(-n // (4 * count)))
            parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
            return zip(parts, pool.map(work, parts), strict=True)

        yield share


@functools.cache
def _faiss_gpu() -> tuple[Any, Any]:
    """faiss with torch tensors passed by pointer, and its resources."""
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(FAISS_TEMPORARY_BYTES)
    return faiss, resources


def _faiss_search(points: Tensor, table: Tensor, k: int) -> Search:
    """faiss's exhaustive search: IndexFlatIP on a CPU, knn_gpu on a GPU."""
    if points.is_cuda:
        faiss, resources = _faiss_gpu()
        return lambda rows: faiss.knn_gpu(resources, rows, table, k, metric=faiss.METRIC_INNER_PRODUCT)
    import faiss

    index = faiss.IndexFlatIP(points.shape[1])
    index.add(table.numpy())
    return lambda rows: map(torch.from_numpy, index.search(rows.numpy(), k))


def _cuml_search(points: Tensor, table: Tensor, k: int) -> Search:
    """cuML's brute-force NearestNeighbors, fitted to the centroids; CuPy arrays both ways, without a copy: cuML 26.08
    refuses torch's tensors because their dtype is not NumPy's.

    The products are computed again here, so that the result does not depend on how cuML rounds and signs its distances.
    """
    import cupy
    from cuml.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="inner_product", output_type="cupy")
    index.fit(cupy.asarray(table))

    def search(rows: Tensor) -> tuple[Tensor, Tensor]:
        found = index.kneighbors(cupy.asarray(rows), n_neighbors=k, return_distance=False)
        ids = from_dlpack(found).long().reshape(-1, k)
        scores, order = torch.sort((rows[:, None] * table[ids]).sum(dim=2), dim=1, descending=True, stable=True)
        return scores, ids.gather(1, order)

    return search


def _by_library(
    build: Callable[[Tensor, Tensor, int], Search], points: Tensor, centroids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D), (K, D) -> (N,) int64 nearest centroid, its product, and the second largest product."""
    n, k = len(points), min(2, len(centroids))
    nearest = torch.empty(n, dtype=torch.int64, device=points.device)
    best, second = torch.full((2, n), -torch.inf, device=points.device)
    search = build(points, centroids.float().contiguous(), k)
    together = LIBRARY_ROWS if points.is_cuda else CPU_ROWS
    for start in range(0, n, together):
        part = slice(start, start + together)
        scores, ids = search(points[part].float().contiguous())  # float32 rows are passed without a copy
        nearest[part], best[part] = ids[:, 0], scores[:, 0]
        if k == 2:
            second[part] = scores[:, 1]
    return nearest, best, second


_TOP_TWO: dict[Chosen, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "torch": best_two,
    "triton": assign_triton,
    "faiss": functools.partial(_by_library, _faiss_search),
    "cuml": functools.partial(_by_library, _cuml_search),
}
