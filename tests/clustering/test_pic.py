"""Power Iteration Clustering against scipy's sparse matrices and brute force; blobs, duplicates, what is degenerate."""

import numpy as np
import pytest
import scipy.sparse
import torch
from points import blobs
from precisions import medium
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

import unfused_fast.clustering.pic as pic
from unfused_fast.clustering.pic import nearest_neighbours, power_iteration_clustering
from unfused_fast.errors import UserError


def scipys(points: np.ndarray, neighbours: int, sigma: float, alpha: float, iterations: int) -> np.ndarray:
    """The same algorithm over scipy's matrices, one point at a time: its own neighbours, iteration and climb."""
    squared = np.maximum(2 - 2 * points.astype(np.float64) @ points.astype(np.float64).T, 0)
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, axis=1, kind="stable")[:, :neighbours]
    count = len(points)
    weights = np.exp(-np.take_along_axis(squared, near, axis=1) / sigma**2)
    directed = scipy.sparse.csr_array(
        (weights.ravel(), (np.repeat(np.arange(count), neighbours), near.ravel())), shape=(count, count)
    )
    graph = (directed + directed.T).tocsr()
    start = np.full(count, 1 / count)
    vector = start
    for _ in range(iterations):
        vector = alpha * start + (1 - alpha) * (graph @ vector)
        vector = vector / vector.sum()
    upward = np.arange(count)
    for point in range(count):
        best = 0.0
        for edge in range(graph.indptr[point], graph.indptr[point + 1]):
            gain = graph.data[edge] * (vector[graph.indices[edge]] - vector[point])
            if gain > best:
                best, upward[point] = gain, graph.indices[edge]
    top = np.arange(count)
    for point in range(count):
        while upward[top[point]] != top[point]:
            top[point] = upward[top[point]]
    found, sizes = top.copy(), np.bincount(top, minlength=count)
    for point in np.flatnonzero(sizes[top] == 1):
        for neighbour in near[point]:
            if sizes[top[neighbour]] > 1:
                found[point] = top[neighbour]
                break
    return found


@pytest.mark.parametrize(
    ("count", "dim", "centres", "noise", "neighbours"),
    [(400, 8, 10, 0.15, 5), (333, 16, 7, 0.4, 5), (257, 4, 3, 1.0, 3), (101, 32, 1, 1.0, 9), (300, 24, 5, 0.05, 5)],
)
def test_clusters_are_those_of_scipy(count: int, dim: int, centres: int, noise: float, neighbours: int) -> None:
    points = blobs(count, dim, centres, noise)
    found = power_iteration_clustering(points, neighbours=neighbours).numpy()
    expected = scipys(points.numpy(), neighbours, 0.2, 0.001, 200)
    assert normalized_mutual_info_score(found, expected) == pytest.approx(1.0, abs=1e-12), "equal but for their ids"
    assert len(np.unique(found)) == len(np.unique(expected)) > (1 if centres > 1 else 0)
    assert set(found) == set(range(found.max() + 1)), "ids have no gaps"


def test_neighbours_are_brute_forces_in_any_blocks_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(203, 12, 9, 0.5)
    distances = torch.cdist(points.double(), points.double()).square().fill_diagonal_(torch.inf)
    nearest, order = distances.sort(dim=1)
    seen, multiply = [], torch.Tensor.__matmul__

    def noted(left: Tensor, right: Tensor) -> Tensor:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    with medium():
        for values in (1, 203 * 10, 1 << 24):
            monkeypatch.setattr(pic, "BLOCK_VALUES", values)
            ids, found = nearest_neighbours(points, 5)
            assert torch.equal(ids, order[:, :5])
            torch.testing.assert_close(found, nearest[:, :5], atol=1e-9, rtol=1e-7)
        assert set(seen) == {"ieee"} and torch.get_float32_matmul_precision() == "medium"


def test_no_matrix_of_all_pairs_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pic, "BLOCK_VALUES", 1 << 14)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        power_iteration_clustering(blobs(2000, 8, 20, 0.3), iterations=3)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 2000 * 2000, "a quarter of the (N, N) similarities in float32"


def test_duplicates_far_points_and_tiny_sets() -> None:
    same = power_iteration_clustering(normalize(torch.ones(50, 4), dim=1))
    assert len(same) == 50 and same.min() == 0
    far = power_iteration_clustering(torch.eye(40))  # all equally far: weights of exp(-50)
    assert len(far) == 40
    assert len(power_iteration_clustering(torch.eye(2))) == 2
    with pytest.raises(UserError, match="1 clip"):
        power_iteration_clustering(torch.ones(1, 4))
