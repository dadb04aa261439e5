"""k-means against faiss, pseudo-labels on separable data."""

import faiss
import pytest
import torch
from host_waits import Recorded
from points import blobs, equal
from torch.nn.functional import normalize

from unfused_fast.clustering.kmeans import euclidean_kmeans, spherical_kmeans
from unfused_fast.clustering.pca import pca_whiten, pseudo_label_kmeans
from unfused_fast.clustering.scores import normalised_mutual_information
from unfused_fast.errors import UserError
from unfused_fast.kernels import assign


@pytest.mark.parametrize(("count", "dim", "k"), [(2000, 32, 20), (1023, 17, 5), (300, 8, 1)])
def test_spherical_kmeans_is_faiss(count: int, dim: int, k: int) -> None:
    points = blobs(count, dim, max(3, k), noise=0.4)
    start = points[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:k]]
    found = spherical_kmeans(points, k, iterations=10, init=start)
    oracle = faiss.Clustering(dim, k)
    oracle.niter, oracle.spherical, oracle.max_points_per_centroid = 10, True, count
    faiss.copy_array_to_vector(start.numpy().ravel(), oracle.centroids)
    index = faiss.IndexFlatIP(dim)
    oracle.train(points.numpy(), index)
    similarity, nearest = index.search(points.numpy(), 1)
    differ = torch.from_numpy(nearest[:, 0]) != found.assignments
    own = (points * found.centroids[found.assignments]).sum(dim=1)
    assert (torch.from_numpy(similarity[:, 0]) - own)[differ].abs().max().item() < 1e-5 if differ.any() else True
    assert found.objective.item() == pytest.approx(similarity.mean(), abs=1e-5)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(k))
    assert found.counts.tolist() == torch.bincount(found.assignments, minlength=k).tolist()


def test_empty_clusters_keep_or_split() -> None:
    points = blobs(200, 8, 2, noise=0.05)
    start = torch.cat([points[:2], normalize(-points[:1] - points[1:2], dim=1)])
    kept = spherical_kmeans(points, 3, init=start, empty="keep")
    assert kept.counts[2] == 0
    torch.testing.assert_close(kept.centroids[2], start[2])
    assert spherical_kmeans(points, 3, init=start, empty="split").counts.min() > 0


def test_euclidean_kmeans_is_faiss_on_separable_data() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 5 * torch.randn(6, 10, generator=generator)[torch.arange(600) % 6] + 0.3 * torch.randn(
        600, 10, generator=generator
    )
    found = euclidean_kmeans(points, 6, n_init=5, generator=generator)
    oracle = faiss.Kmeans(10, 6, niter=20, nredo=100, seed=1)
    oracle.train(points.numpy())
    distances, _ = oracle.index.search(points.numpy(), 1)  # the best of the five starts
    assert found.objective.item() == pytest.approx(distances.mean(), rel=1e-4)
    assert normalised_mutual_information(found.assignments, torch.arange(600) % 6) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_size_of_blocks_does_not_matter(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows as an untrained network gives them, which all point nearly in one direction: most are near ties. The
    last size is a GPU's, for which launches are few.
    """
    points = normalize(1 + 1e-2 * torch.randn(1500, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    points, found, launches = points.to(device, dtype), [], []
    for size in (500, 5000, assign.BLOCK_BYTES["cpu"], assign.BLOCK_BYTES["cuda"]):
        monkeypatch.setitem(assign.BLOCK_BYTES, device, size)
        with Recorded() as seen:
            one = spherical_kmeans(points, 37, iterations=3, init=points[:37].float(), backend="torch", empty="split")
            generator = torch.Generator(device).manual_seed(1)
            other = euclidean_kmeans(points, 7, iterations=3, generator=generator)
        found.append((one, other))
        launches.append(seen.launches)
        equal(one, found[0][0])
        for mine, theirs in zip(found[0][1][:3], other[:3], strict=True):
            assert torch.equal(mine, theirs)
    assert launches[-1] < 8 * 90 < launches[1], "eight passes over the rows"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(60, 8), (6, 8)])
def test_points_that_are_not_finite_are_refused(shape: tuple[int, int], bad: float) -> None:
    points = torch.randn(shape)
    points[3, 1] = bad
    for cluster in (
        lambda: pca_whiten(points, 4),
        lambda: euclidean_kmeans(points, 2),
        lambda: spherical_kmeans(points, 2),
        lambda: pseudo_label_kmeans(points, 2, pca_dim=0, whiten=False, iterations=1, n_init=1, seed=0),
    ):
        with pytest.raises(UserError, match="not all finite"):
            cluster()


def test_pseudo_labels_find_separable_classes() -> None:
    points = blobs(330, 64, 11, noise=0.2)
    found = pseudo_label_kmeans(points, 11, pca_dim=16, whiten=True, iterations=20, n_init=10, seed=0)
    assert normalised_mutual_information(found.assignments, torch.arange(330) % 11) > 0.95


def test_more_clusters_than_points() -> None:
    with pytest.raises(UserError, match="9 clusters were requested, but there are 5 clips"):
        spherical_kmeans(blobs(5, 4, 2, noise=0.4), 9)
