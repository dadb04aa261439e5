"""Cluster sums, counts and unit-norm centroids against float64 numpy.   N points, K clusters, D features."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from points import equal
from torch import Tensor

from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.kernels import assign, centroids


def random_case(n: int, k: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator).to(dtype)
    return points, torch.randint(0, k, (n,), generator=generator)


SCALE = 2.0**27  # the normal points here are smaller than 8


def check(points: Tensor, assignments: Tensor, k: int, sums: Tensor, counts: Tensor) -> None:
    """Integer sums to the last bit, and beside the float64 sums the truncation of each number alone."""
    assert sums.dtype == counts.dtype == torch.int64
    ids, values = assignments.numpy(), points.double().numpy()
    expected, exact = np.zeros((k, points.shape[1])), np.zeros((k, points.shape[1]), np.int64)
    np.add.at(expected, ids, values)
    np.add.at(exact, ids, np.trunc(values * SCALE).astype(np.int64))
    np.testing.assert_array_equal(sums.numpy(), exact)
    np.testing.assert_array_equal(counts.numpy(), np.bincount(ids, minlength=k))
    assert np.all(np.abs(sums.double().numpy() / SCALE - expected) <= counts.numpy()[:, None] / SCALE + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [
        *((n, k, d) for n in (1, 17) for k in (1, 130) for d in (1, 17)),
        (1023, 130, 17),
        (17, 5, 1023),
        (1023, 5, 130),
        (0, 4, 3),
    ],
)
def test_sums_on_odd_shapes(run: Callable[..., Any], n: int, k: int, d: int, dtype: torch.dtype) -> None:
    points, assignments = random_case(n, k, d, dtype)
    check(points, assignments, k, *run(centroids, "centroid_sums", points, assignments, k, SCALE))


@pytest.mark.parametrize("size", [255, 256, 257, 1000])
def test_skewed_and_empty_clusters(run: Callable[..., Any], size: int) -> None:
    """One cluster of several chunks among empty ones; sizes at the chunk's edge."""
    points, _ = random_case(size + 3, 1, 5, torch.float32)
    assignments = torch.full((size + 3,), 4)
    assignments[[0, size // 2, size]] = torch.tensor([8, 1, 8])
    sums, counts = run(centroids, "centroid_sums", points, assignments, 9, SCALE)
    check(points, assignments, 9, sums, counts)
    assert counts.tolist() == [0, 1, 0, 0, size, 0, 0, 0, 2]
    assert not sums[[0, 2, 3, 5, 6, 7]].any()


def test_any_strides(run: Callable[..., Any]) -> None:
    points, assignments = random_case(80, 6, 34, torch.float32)
    points, assignments = points.T[1:, ::2].T[:, ::2], assignments[::2]
    assert not points.is_contiguous() and not assignments.is_contiguous()
    check(points, assignments, 6, *run(centroids, "centroid_sums", points, assignments, 6, SCALE))


def test_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assign.BLOCK_BYTES, "cpu", 1000)
    points, assignments = random_case(999, 7, 10, torch.bfloat16)
    check(points, assignments, 7, *centroids.centroid_sums_reference(points, assignments, 7, SCALE))


def test_same_bits_every_time_and_in_any_order(run: Callable[..., Any]) -> None:
    points, assignments = random_case(3000, 4, 9, torch.float32)
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    one, _ = run(centroids, "centroid_sums", points, assignments, 4, SCALE)
    for order in (shuffled, torch.arange(3000)):
        assert torch.equal(one, run(centroids, "centroid_sums", points[order], assignments[order], 4, SCALE)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_moving_points_is_adding_them_up_again(share: float, dtype: torch.dtype) -> None:
    points, old = random_case(1023, 13, 37, dtype)
    new = torch.where(torch.rand(1023, generator=torch.Generator().manual_seed(2)) < share, (old + 5) % 13, old)
    sums, _ = centroids.centroid_sums_reference(points, old, 13, SCALE)
    centroids.move_points(sums, points, old, new, SCALE)
    assert torch.equal(sums, centroids.centroid_sums_reference(points, new, 13, SCALE)[0])


@pytest.mark.parametrize(
    ("norm", "scale"), [(1.0, 2.0**30), (1.0000002, 2.0**30), (0.3, 2.0**31), (5.0, 2.0**27), (0.0, 2.0**30)]
)
def test_scale_by_hand(norm: float, scale: float) -> None:
    assert centroids.fixed_point_scale(norm) == scale


def test_no_scale_for_extreme_rows() -> None:
    for norm in (1e-40, 1e39):
        with pytest.raises(ValueError, match="largest norm"):
            centroids.fixed_point_scale(norm)


def test_unit_norm_or_previous() -> None:
    sums = torch.tensor([[3, 4], [0, 0], [0, 0], [0, -2]])
    previous = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    updated = centroids.normalise_centroids(sums, torch.tensor([5, 0, 2, 1]), previous)
    torch.testing.assert_close(updated, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.6, 0.8], [0.0, -1.0]]))


@pytest.mark.parametrize(
    ("n", "d", "k", "dtype"), [(301, 17, 5, torch.float32), (130, 33, 19, torch.bfloat16), (40, 5, 1, torch.float32)]
)
def test_k_means_by_both_kernels_has_the_bits_of_torch(
    interpreter: ProcessPoolExecutor, n: int, d: int, k: int, dtype: torch.dtype
) -> None:
    points = torch.nn.functional.normalize(random_case(n, 1, d, torch.float32)[0], dim=1).to(dtype)
    settings: dict[str, Any] = {"iterations": 4, "init": points[:k], "empty": "reseed"}
    found = interpreter.submit(spherical_kmeans, points, k, backend="triton", **settings).result()
    equal(spherical_kmeans(points, k, backend="torch", **settings), found)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_without_atomics(
    compile_for: Callable[..., Any], local_bytes: Callable[[Any], int], dtype: str
) -> None:
    chunk_sums, cluster_sums = centroids._build_kernels()
    rows = dict.fromkeys(["order_ptr", "chunk_cluster_ptr", "chunk_ends_ptr", "starts_ptr"], "*i64")
    types = {"points_ptr": f"*{dtype}", "partial_ptr": "*i64", "K": "i32", "D": "i32"}
    types |= {"scale": "fp32"}
    first = compile_for(
        chunk_sums,
        rows | types,
        {"CHUNK_POINTS": centroids.CHUNK, "BLOCK_N": 32, "BLOCK_D": 128},
        enable_fp_fusion=False,
    )
    types = {"partial_ptr": "*i64", "chunk_ends_ptr": "*i64", "chunks_ptr": "*i64", "sums_ptr": "*i64", "D": "i32"}
    second = compile_for(cluster_sums, types, {"BLOCK_C": 16, "BLOCK_D": 128}, enable_fp_fusion=False)
    for compiled in (first, second):
        assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
        assert local_bytes(compiled) == 0
