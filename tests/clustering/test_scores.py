"""PCA in blocks and NMI against scikit-learn, the spread of rows against NumPy and SciPy, the early stop, and how even
clusters are, by hand.
"""

import numpy as np
import pytest
import torch
from live_memory import Live
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score

from unfused_fast.clustering import pca
from unfused_fast.clustering.assign import mean_directions, own_similarities
from unfused_fast.clustering.pca import pca_whiten, resolve_pca_dim, row_spread
from unfused_fast.clustering.scores import cluster_sizes, normalised_mutual_information, stalled
from unfused_fast.errors import UserError


@pytest.mark.parametrize(
    ("shape", "dtype", "whiten"),
    [((1003, 24), torch.float32, True), ((1003, 24), torch.bfloat16, False), ((40, 100), torch.float32, True)],
)
def test_pca_in_blocks_is_scikit_learns(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], whiten: bool, dtype: torch.dtype
) -> None:
    width = shape[1]
    generator = np.random.default_rng(0)
    scales = np.linspace(3, 0.3, width)
    data = generator.standard_normal(shape) * scales @ generator.standard_normal((width, width)) + 40
    points = torch.from_numpy(data).to(dtype)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 97)
    found = pca_whiten(points, 10, whiten).numpy()
    expected = PCA(10, whiten=whiten, svd_solver="full").fit_transform(points.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    signs = np.sign((found * expected).sum(axis=0))  # the sign of a component is free
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)


def test_pca_drops_what_has_no_variance() -> None:
    data = torch.zeros(50, 20)
    data[:, :3] = torch.randn(50, 3)
    assert pca_whiten(data, 10).shape == (50, 3)
    with pytest.raises(UserError, match="same features"):
        pca_whiten(torch.ones(5, 4), 2)


def test_pca_dim_of_a_small_set() -> None:
    assert [resolve_pca_dim("auto", clips) for clips in (10, 640, 2048, 200_000)] == [2, 40, 128, 128]
    assert resolve_pca_dim(7, 10) == 7


@pytest.mark.parametrize(
    ("nmis", "patience", "every", "stops"),
    [
        ([], 1, 1, False),
        ([0.5, 0.6], 1, 1, False),
        ([0.5, 0.5], 1, 1, True),
        ([0.7, 0.6, 0.65, 0.69], 3, 1, True),
        ([0.7, 0.6, 0.65, 0.71], 3, 1, False),
        ([0.9] + [0.1] * 50, 0, 1, False),
        ([0.7, 0.6, 0.65], 10, 5, True),  # ten epochs
        ([0.7, 0.6, 0.65], 11, 5, False),
    ],
)
def test_the_early_stop_counts_epochs_without_a_new_best(
    nmis: list[float], patience: int, every: int, stops: bool
) -> None:
    assert stalled(nmis, patience, every) is stops


def test_sizes_by_hand() -> None:
    sizes = cluster_sizes(torch.tensor([4, 0, 4, 0, 8]))
    assert (sizes.empty, sizes.largest_share) == (2, 0.5)
    assert sizes.perplexity == pytest.approx(2**1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_directions_are_numpys_whatever_the_order_of_rows(dtype: torch.dtype) -> None:
    points = torch.randn(9001, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    clusters = torch.arange(9001) * 7919 % 50
    rows, ids = points.double().numpy(), clusters.numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sums = np.stack([rows[ids == cluster].sum(axis=0) for cluster in range(50)])
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    found = mean_directions(points, clusters, 50)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    cosines = (rows * expected[ids]).sum(axis=1)
    np.testing.assert_allclose(own_similarities(points, clusters, 50).numpy(), cosines, atol=1e-6)
    assert torch.equal(mean_directions(points.flip(0), clusters.flip(0), 50), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_spread_of_rows_is_numpys(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(generator.standard_normal((1003, 24)) * np.linspace(3, 0.1, 24) + 2).to(dtype)
    monkeypatch.setattr(pca, "BLOCK_ROWS", 97)
    found = row_spread(rows)
    unit = rows.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    shares = shares / shares.sum()
    assert found.mean_direction == pytest.approx(np.linalg.norm(unit.mean(axis=0)), rel=1e-5)
    assert found.effective_rank == pytest.approx(np.exp(entropy(shares)), rel=1e-5)
    assert found.first_direction == pytest.approx(shares.max(), rel=1e-5)


def test_the_spread_of_extreme_rows_by_hand() -> None:
    axes = torch.cat([torch.eye(8), -3 * torch.eye(8)])  # evenly to all sides, whatever their norms
    assert row_spread(axes) == pytest.approx((0.0, 8.0, 1 / 8), abs=1e-6)
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    assert row_spread(line) == pytest.approx((1 / 3, 1.0, 1.0), abs=1e-6)
    assert row_spread(torch.ones(5, 3)).mean_direction == pytest.approx(1.0)
    with pytest.raises(UserError, match="not all finite"):
        row_spread(torch.tensor([[1.0, torch.nan]]))


def test_nmi_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 7, 500), generator.integers(0, 4, 500)
    second[:300] = first[:300] % 4
    expected = normalized_mutual_info_score(first, second, average_method="geometric")
    assert normalised_mutual_information(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(
        expected, abs=1e-9
    )
    assert normalised_mutual_information(torch.from_numpy(first), torch.from_numpy((first + 3) % 7)) == pytest.approx(
        1.0
    )


def test_nmi_takes_no_more_memory_with_more_clusters() -> None:
    """A matrix of all pairs would have 8 MB here."""
    first = torch.arange(2000) % 1000
    with Live(first) as seen:
        assert normalised_mutual_information(first, 999 - first) == pytest.approx(1.0)
    assert 0 < seen.peak < 20 * first.nbytes
