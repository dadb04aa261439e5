"""Seconds of spherical k-means: every back end here, faiss, scikit-learn and flash-kmeans, beside the matmul floor.

One run times all of them on the same rows from the same start, ITERATIONS iterations each. Ours and scikit-learn also
end with the assignments (one more pass); faiss trains only, so its row is given with and without that search. Peers:
faiss.Clustering, spherical and without sub-sampling, on the CPU or the GPU the rows are on; scikit-learn's KMeans on
unit rows (squared distance; its centroids are not normalised); flash-kmeans (squared distance, GPUs, own random start).
The floor is 2 N D K operations for each pass at the rate of one matrix product measured between the others.

A row's settings have the mean cosine to the own centroid (the same float64 sum for all) and, for ours, whether the
assignments are those of the torch back end bit for bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from measure import arguments, record, seconds_of
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.clustering.backends import Backend, resolve_backend
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.errors import UserError
from unfused_fast.memory import free_memory

ON_A_CPU = [(10_000, 128, 64), (100_000, 128, 512), (100_000, 512, 512), (250_000, 512, 512)]
ON_A_GPU = [*ON_A_CPU, (250_000, 512, 4096), (1_000_000, 512, 1024), (2_000_000, 512, 4096)]
"""N, D, K."""
ITERATIONS = 10
Clustering = Callable[[], tuple[Tensor, Tensor]]
"""Runs once: (K, D) centroids and (N,) assignments, which may be empty where a peer gives none."""


def rows(n: int, d: int, k: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Unit rows around 2 K directions, drawn in blocks: clusters that overlap, as those of a bank do."""
    generator = torch.Generator(device=device).manual_seed(0)
    centres = torch.randn(2 * k, d, device=device, generator=generator)
    points = torch.empty(n, d, device=device, dtype=dtype)
    for part in torch.split(points, 65536):
        ids = torch.randint(2 * k, (len(part),), device=device, generator=generator)
        noise = torch.randn(part.shape, device=device, generator=generator)
        part.copy_(normalize(centres[ids] + 2 * noise, dim=1))
    return points


def mean_cosine(points: Tensor, centroids: Tensor) -> float:
    """Over all rows, to the nearest of the centroids at unit norm, in float64 sums."""
    unit = normalize(centroids.to(points.device).float(), dim=1)
    found = spherical_kmeans(points, len(unit), iterations=0, init=unit)
    return float(found.objective)


def peers(points: Tensor, start: Tensor) -> dict[str, Clustering]:
    """Name -> a run of a peer that is installed and takes these rows."""
    n, d = points.shape
    k, found = len(start), dict[str, Clustering]()
    none = torch.empty(0, dtype=torch.int64)
    if importlib.util.find_spec("faiss"):
        import faiss

        host = points.float().cpu().numpy() if points.is_cuda else points.float().numpy()

        def run_faiss(search: bool) -> tuple[Tensor, Tensor]:
            clustering = faiss.Clustering(d, k)
            clustering.niter, clustering.spherical, clustering.max_points_per_centroid = ITERATIONS, True, n
            faiss.copy_array_to_vector(start.float().cpu().numpy().ravel(), clustering.centroids)
            index: faiss.Index = faiss.IndexFlatIP(d)
            if points.is_cuda:
                index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
            clustering.train(host, index)
            centroids = torch.from_numpy(faiss.vector_to_array(clustering.centroids).reshape(k, d))
            return centroids, torch.from_numpy(index.search(host, 1)[1][:, 0]) if search else none

        if not points.is_cuda or hasattr(faiss, "StandardGpuResources"):
            found["faiss.Clustering"] = lambda: run_faiss(False)
            found["faiss.Clustering + search"] = lambda: run_faiss(True)
    if importlib.util.find_spec("sklearn") and not points.is_cuda and points.dtype == torch.float32:
        from sklearn.cluster import KMeans

        def run_sklearn() -> tuple[Tensor, Tensor]:
            model = KMeans(k, init=start.numpy(), n_init=1, max_iter=ITERATIONS, tol=0.0, algorithm="lloyd")
            model.fit(points.numpy())
            return torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_).long()

        found["scikit-learn KMeans"] = run_sklearn
    if importlib.util.find_spec("flash_kmeans") and points.is_cuda:
        from flash_kmeans import batch_kmeans_Euclid

        def run_flash() -> tuple[Tensor, Tensor]:
            ids, centroids, _ = batch_kmeans_Euclid(points[None], k, max_iters=ITERATIONS, tol=0.0)
            return centroids[0], ids[0]

        found["flash-kmeans"] = run_flash
    return found


def matmul_seconds(n: int, d: int, k: int, device: torch.device, dtype: torch.dtype) -> float:
    """2 N D K operations at the best rate of one product of the rows' dtype, of a size that fits everywhere."""
    if device.type == "cpu":
        dtype = torch.float32
    block = min(n, 4096 if device.type == "cpu" else 65536)
    left, right = torch.randn(block, d, device=device).to(dtype), torch.randn(d, k, device=device).to(dtype)
    out = torch.empty(block, k, device=device, dtype=dtype)
    best = min(seconds_of(lambda: torch.mm(left, right, out=out), device) for _ in range(10))
    return best * n / block


def compare(
    n: int, d: int, k: int, device: torch.device, dtype: torch.dtype, names: Sequence[Backend], repeats: int
) -> None:
    """All contestants on one shape, interleaved: each repeat runs every one once, so that a busy moment hits all."""
    points = rows(n, d, k, device, dtype)
    start = points[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k].to(device)].float()

    def ours(backend: Backend) -> tuple[Tensor, Tensor]:
        return spherical_kmeans(points, k, iterations=ITERATIONS, init=start, backend=backend)[:2]

    contestants: dict[str, Clustering] = {f"unfused-fast, {backend}": partial(ours, backend) for backend in names}
    contestants |= peers(points, start)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    floors: list[float] = []

    def once(name: str) -> None:
        results[name] = contestants[name]()

    for repeat in range(repeats + 1):
        for name, found in times.items():
            seconds = seconds_of(partial(once, name), device)
            if repeat:  # the first does not count
                found.append(seconds)
        floors.append(matmul_seconds(n, d, k, device, dtype) * (ITERATIONS + 1))
    reference = results["unfused-fast, torch"][1]
    shape = {"N": n, "D": d, "K": k, "dtype": str(dtype).removeprefix("torch."), "iterations": ITERATIONS}
    shape["threads"] = torch.get_num_threads()
    record("bench_kmeans", "matmul floor", "s", floors, device, **shape)
    for name, values in times.items():
        centroids, ids = results[name]
        notes: dict[str, object] = {"cosine": f"{mean_cosine(points, centroids):.6f}"}
        if name.startswith("unfused-fast"):
            notes["equal_to_torch"] = torch.equal(ids, reference)
        if "faiss.Clustering" in times:
            ratios = [mine / theirs for mine, theirs in zip(values, times["faiss.Clustering"], strict=True)]
            notes["times_faiss"] = f"{median(ratios):.2f}"
        record("bench_kmeans", name, "s", values, device, **shape, **notes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("N", "D", "K"), help="one shape instead of the grid")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    names = []
    for name in ("torch", "triton", "faiss", "cuml"):
        try:
            names.append(resolve_backend(name, device))
        except UserError as error:
            print(f"without {name}: {error}")
    free = free_memory(device)
    shapes = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    for n, d, k in [given.shape] if given.shape else shapes:
        if 2 * n * d * dtype.itemsize + 16 * k * d < (free.device or free.host) / 2:  # rows, a peer's copy, scratch
            compare(n, d, k, device, dtype, names, given.repeats)
        else:
            print(f"{n} x {d} x {k}: does not fit in memory, left out")


if __name__ == "__main__":
    main()
