"""PCA in blocks against scikit-learn, the early stop, and how even clusters are, by hand."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from unfused_fast.assignment import mean_directions, own_similarities
from unfused_fast.partitions import cluster_sizes, pca_whiten, resolve_pca_dim, stalled


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pca_in_blocks_is_scikit_learns(whiten: bool, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((1003, 24)) * np.linspace(3, 0.3, 24) @ generator.standard_normal((24, 24)) + 40
    points = torch.from_numpy(data).to(dtype)
    found = pca_whiten(points, 10, whiten, block_rows=97).numpy()
    exact = points.double().numpy()
    expected = PCA(10, whiten=whiten, svd_solver="full").fit_transform(exact)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    signs = np.sign((found * expected).sum(axis=0))  # the sign of a component is free
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)
    whole = pca_whiten(points, 10, whiten).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(whole), atol=1e-6)


def test_pca_dim_of_a_small_set() -> None:
    assert [resolve_pca_dim("auto", clips) for clips in (10, 640, 2048, 200_000)] == [2, 40, 128, 128]
    assert resolve_pca_dim(7, 10) == 7


@pytest.mark.parametrize(
    ("history", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.7, 0.6, 0.65], 3, False),
        ([0.7, 0.6, 0.65, 0.69], 3, True),
        ([0.7, 0.6, 0.65, 0.71], 3, False),
        ([0.9] + [0.1] * 50, 0, False),
    ],
)
def test_the_early_stop_counts_epochs_without_a_new_best(history: list[float], patience: int, stops: bool) -> None:
    assert stalled(history, patience) is stops


def test_sizes_by_hand() -> None:
    sizes = cluster_sizes(torch.tensor([4, 0, 4, 0, 8]))
    assert (sizes.empty, sizes.largest_share) == (2, 0.5)
    assert sizes.perplexity == pytest.approx(2**1.5)


def test_mean_directions_by_hand() -> None:
    points, clusters = torch.tensor([[2.0, 0], [0, 5], [0, -1], [-3, 0]]), torch.tensor([0, 0, 2, 2])
    half = 0.5**0.5
    torch.testing.assert_close(
        mean_directions(points, clusters, 3), torch.tensor([[half, half], [0, 0], [-half, -half]])
    )
    torch.testing.assert_close(own_similarities(points, clusters, 3), torch.full((4,), half))
