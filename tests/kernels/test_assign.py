"""Nearest centroid against float64 numpy.   N points, K centroids, D features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from precisions import medium
from torch import Tensor

from unfused_fast.kernels import assign

# Rounding of a float32 sum of D products of about 1 / D each. Both sides start from the same numbers, bfloat16 or not.
TOLERANCE = 1e-5


def unit_rows(rows: int, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1).to(dtype)


def check(points: Tensor, centroids: Tensor, assignments: Tensor, similarities: Tensor, second: Tensor) -> None:
    """Equal to float64; an assignment may differ only where the two similarities are equal within the tolerance."""
    assert assignments.dtype == torch.int64 and similarities.dtype == second.dtype == torch.float32
    assert assignments.shape == similarities.shape == second.shape == points.shape[:1]
    scores = points.double().numpy() @ centroids.double().numpy().T
    ours = assignments.numpy()
    assert np.all((ours >= 0) & (ours < len(centroids)))
    reached = scores[np.arange(len(points)), ours]
    shortfall = scores.max(axis=1) - reached
    assert np.all(shortfall <= TOLERANCE), "not a tie: a closer centroid"
    assert np.all(ours[shortfall == 0] <= scores.argmax(axis=1)[shortfall == 0])
    np.testing.assert_allclose(similarities.numpy(), reached, atol=TOLERANCE, rtol=0)
    if len(centroids) == 1:
        assert np.all(np.isneginf(second.numpy()))
    else:
        np.testing.assert_allclose(second.numpy(), np.sort(scores, axis=1)[:, -2], atol=TOLERANCE, rtol=0)
    settled = assign.resolve_near_ties(points, centroids, assignments.clone(), similarities, second, 2 * TOLERANCE)
    tied = scores >= scores.max(axis=1, keepdims=True) - assign.TIE * np.linalg.norm(points.double(), axis=1)[:, None]
    np.testing.assert_array_equal(settled.numpy(), tied.argmax(axis=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [
        *((n, k, d) for n in (1, 17) for k in (1, 130) for d in (1, 17)),
        (17, 130, 1023),
        (1023, 5, 17),
        (1023, 130, 1),
        (300, 130, 1023),
        (0, 3, 4),
    ],
)
def test_nearest_on_odd_shapes(run: Callable[..., Any], n: int, k: int, d: int, dtype: torch.dtype) -> None:
    points, centroids = unit_rows(n, d, dtype, seed=1), unit_rows(k, d, dtype, seed=2)
    check(points, centroids, *run(assign, "assign", points, centroids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_exact_ties_go_to_the_lowest_index(run: Callable[..., Any], dtype: torch.dtype) -> None:
    # Small integers: every product and sum is exact. Centroids 3, 70, 140 and 299 are the same, each in its own tile.
    generator = torch.Generator().manual_seed(3)
    centroids = torch.randint(-2, 3, (300, 20), generator=generator).to(dtype)
    centroids[[70, 140, 299]] = centroids[3] = torch.full((20,), 3).to(dtype)
    points = torch.full((5, 20), 2).to(dtype)
    assignments, similarities, second = run(assign, "assign", points, centroids)
    assert assignments.tolist() == [3] * 5
    assert similarities.tolist() == second.tolist() == [120.0] * 5
    assert run(assign, "assign", torch.zeros_like(points), centroids)[0].tolist() == [0] * 5


def test_negative_similarities_beat_the_padding(run: Callable[..., Any]) -> None:
    centroids = -torch.arange(1.0, 4.0)[:, None].expand(3, 2)
    assignments, similarities, second = run(assign, "assign", torch.ones(3, 2), centroids)
    assert assignments.tolist() == [0] * 3
    assert similarities.tolist() == [-2.0] * 3
    assert second.tolist() == [-4.0] * 3


def test_any_strides(run: Callable[..., Any]) -> None:
    wide_points, wide_centroids = unit_rows(50, 74, torch.float32, 4), unit_rows(37, 26, torch.float32, 5)
    points, centroids = wide_points[::2, 1::2], wide_centroids[:, ::2].T[:, :37]
    assert not points.is_contiguous() and not centroids.is_contiguous()
    check(points, centroids, *run(assign, "assign", points, centroids))


def test_products_are_within_the_bound(run: Callable[..., Any]) -> None:
    """On a GPU this is what shows that three TF32 products are float32."""
    points, centroids = unit_rows(513, 300, torch.float32, 10), unit_rows(70, 300, torch.float32, 11)
    _, best, _ = run(assign, "assign", points, centroids)
    exact = (points.double() @ centroids.double().T).amax(dim=1)
    on_tensor_cores = "reference" not in run.where  # type: ignore[attr-defined]
    assert (best - exact).abs().max() <= assign.rounding_bound(300, on_tensor_cores)


def test_near_ties_are_settled_by_float64() -> None:
    """Centroids that differ by less than float32 can tell: a wrong start is put right, equal ones go to the lowest."""
    points = unit_rows(200, 64, torch.float32, 12)
    centroids = unit_rows(6, 64, torch.float32, 13)
    centroids[3] = torch.nextafter(centroids[1], torch.ones(64))
    centroids[5] = centroids[2]
    expected = (points.double() @ centroids[:5].double().T).argmax(dim=1)
    scores = points @ centroids.T
    wrong = torch.tensor([0, 3, 5, 1, 4, 2])[expected]  # 1 and 3, 2 and 5 exchanged
    best, second = torch.topk(scores, 2, dim=1).values.T
    gap = 2 * assign.rounding_bound(64, tensor_cores=False)
    near = best - second <= gap
    assert 0 < near.sum() < 200
    assert torch.equal(assign.resolve_near_ties(points, centroids, wrong, best, second, gap), expected)


@pytest.mark.parametrize("least", [1, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_block_size_does_not_matter(least: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assign.BLOCK_BYTES, "cpu", 0)
    monkeypatch.setattr(assign, "LEAST_ROWS", least)
    points, centroids = unit_rows(100, 33, dtype, 6), unit_rows(9, 33, dtype, 7)
    check(points, centroids, *assign.assign_reference(points, centroids))


def test_full_precision_whatever_training_asked_for() -> None:
    points, centroids = unit_rows(64, 256, torch.float32, 8), unit_rows(32, 256, torch.float32, 9).requires_grad_()
    with medium():
        with torch.autocast("cpu", torch.bfloat16):
            check(points, centroids.detach(), *assign.assign_reference(points, centroids))
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_scratch_is_small() -> None:
    """N x K in float32 would be 200 MB here; nothing above BLOCK_BYTES is ever taken."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Watch():
        assign.assign_reference(torch.ones(50_000, 2), torch.ones(1000, 2))
    assert 0 < largest <= assign.BLOCK_BYTES["cpu"]


@pytest.mark.parametrize("dtype", list(assign.TILES), ids=["bf16", "fp32"])
def test_compiles_for_tensor_cores(compile_for: Callable[..., Any], dtype: torch.dtype) -> None:
    kind = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = {"points_ptr": kind, "centroids_ptr": kind, "assignments_ptr": "*i64", "best_ptr": "*fp32"}
    types |= {"second_ptr": "*fp32", **dict.fromkeys(["N", "K", "D"], "i32")}
    constants = dict(zip(("BLOCK_N", "BLOCK_K", "BLOCK_D"), assign.TILES[dtype], strict=True))
    compiled = compile_for(assign._build_assign_kernel(), types, {**constants, "INTERPRETED": False}, **assign.LAUNCH)
    assert "mma.sync" in compiled.asm["ptx"] or "wgmma.mma_async" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 96 * 1024
