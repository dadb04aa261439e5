"""Nearest centroid against float64 numpy.   N points, K centroids, D features."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unfused_fast.kernels import assign

# Rounding of a float32 sum of D products of about 1 / D each. Both sides start from the same numbers, bfloat16 or not.
TOLERANCE = 1e-5


def unit_rows(rows: int, features: int, dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1).to(dtype)


def check(points: Tensor, centroids: Tensor, assignments: Tensor, similarities: Tensor) -> None:
    """Equal to float64; an assignment may differ only where the two similarities are equal within the tolerance."""
    assert assignments.dtype == torch.int64 and similarities.dtype == torch.float32
    assert assignments.shape == similarities.shape == points.shape[:1]
    scores = points.double().numpy() @ centroids.double().numpy().T
    ours = assignments.numpy()
    assert np.all((ours >= 0) & (ours < len(centroids)))
    reached = scores[np.arange(len(points)), ours]
    shortfall = scores.max(axis=1) - reached
    assert np.all(shortfall <= TOLERANCE), f"not a tie: a closer centroid by {shortfall.max()}"
    assert np.all(ours[shortfall == 0] <= scores.argmax(axis=1)[shortfall == 0])
    np.testing.assert_allclose(similarities.numpy(), reached, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [
        *((n, k, d) for n in (1, 17) for k in (1, 5, 130) for d in (1, 17)),
        *((17, k, 1023) for k in (1, 5, 130)),
        *((1023, k, 17) for k in (1, 5, 130)),
        (1023, 130, 1),
        (1023, 130, 1023),
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
    assignments, similarities = run(assign, "assign", points, centroids)
    assert assignments.tolist() == [3] * 5
    assert similarities.tolist() == [120.0] * 5
    assert run(assign, "assign", torch.zeros_like(points), centroids)[0].tolist() == [0] * 5


def test_negative_similarities_beat_the_padding(run: Callable[..., Any]) -> None:
    assignments, similarities = run(assign, "assign", torch.ones(3, 2), -torch.arange(1.0, 4.0)[:, None].expand(3, 2))
    assert assignments.tolist() == [0] * 3
    assert similarities.tolist() == [-2.0] * 3


def test_any_strides(run: Callable[..., Any]) -> None:
    wide_points, wide_centroids = unit_rows(50, 74, torch.float32, 4), unit_rows(37, 26, torch.float32, 5)
    points, centroids = wide_points[::2, 1::2], wide_centroids[:, ::2].T[:, :37]
    assert not points.is_contiguous() and not centroids.is_contiguous()
    check(points, centroids, *run(assign, "assign", points, centroids))


def test_no_points(run: Callable[..., Any]) -> None:
    assignments, similarities = run(assign, "assign", torch.ones(0, 4), torch.ones(3, 4))
    assert assignments.shape == similarities.shape == (0,)


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_block_size_does_not_matter(block: int, dtype: torch.dtype) -> None:
    points, centroids = unit_rows(100, 33, dtype, 6), unit_rows(9, 33, dtype, 7)
    check(points, centroids, *assign.assign_reference(points, centroids, block))


def test_full_precision_whatever_training_asked_for() -> None:
    points, centroids = unit_rows(64, 256, torch.float32, 8), unit_rows(32, 256, torch.float32, 9).requires_grad_()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            check(points, centroids.detach(), *assign.assign(points, centroids))
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


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
    assert 0 < largest <= assign.BLOCK_BYTES


@pytest.mark.parametrize(
    ("points", "centroids", "message"),
    [
        (torch.ones(3), torch.ones(2, 3), r"\(3,\).*\(N, D\)"),
        (torch.ones(3, 4), torch.ones(2, 3), "same features"),
        (torch.ones(3, 4), torch.ones(0, 4), "K and D must be 1 or more"),
        (torch.ones(3, 4), torch.ones(2, 4).bfloat16(), "cast one"),
        (torch.ones(3, 4).double(), torch.ones(2, 4).double(), "float64"),
        (torch.ones(3, 4), torch.ones(2, 4, device="meta"), "meta"),
    ],
)
def test_wrong_input_is_named(points: Tensor, centroids: Tensor, message: str) -> None:
    for function in (assign.assign, assign.assign_reference, assign.assign_triton):
        with pytest.raises(ValueError, match=message):
            function(points, centroids)


def test_wrong_block_is_named() -> None:
    with pytest.raises(ValueError, match="block is 0"):
        assign.assign_reference(torch.ones(3, 4), torch.ones(2, 4), block=0)


def test_triton_needs_a_gpu_or_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    with pytest.raises(ValueError, match="call assign_reference"):
        assign.assign_triton(torch.ones(3, 4), torch.ones(2, 4))


def test_importing_the_kernels_imports_no_triton() -> None:
    code = "import sys; from unfused_fast.kernels import assign, centroids; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_for_tensor_cores(compile_for: Callable[..., Any], dtype: str) -> None:
    bf16 = dtype == "bf16"
    sizes = dict.fromkeys(["N", "K", "D", "points_stride_n", "centroids_stride_k"], "i32")
    types = {
        "points_ptr": f"*{dtype}",
        "centroids_ptr": f"*{dtype}",
        "assignments_ptr": "*i64",
        "similarities_ptr": "*fp32",
    }
    tiles = {"BLOCK_N": 128, "BLOCK_K": 128, "BLOCK_D": 64} if bf16 else {"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 16}
    constants = {"points_stride_d": 1, "centroids_stride_d": 1, "INTERPRETED": False} | tiles
    compiled = compile_for(
        assign._build_assign_kernel(), types | sizes, constants, num_warps=8 if bf16 else 4, num_stages=3
    )
    tensor_core_products = compiled.asm["ptx"].count("mma.sync") + compiled.asm["ptx"].count("wgmma.mma_async")
    assert (tensor_core_products > 0) == bf16  # float32 stays float32, not TF32
    assert compiled.metadata.shared <= 96 * 1024
