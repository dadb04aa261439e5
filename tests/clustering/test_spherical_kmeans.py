"""Spherical k-means gives one answer, that of float64: on every back end, number of threads and of ranks.   N points, D
features, K clusters."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kmeans_on_ranks import CUTS
from points import blobs, equal
from precisions import medium
from rank_jobs import run_jobs
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast import optional
from unfused_fast.clustering import backends as kmeans_backends
from unfused_fast.clustering.backends import nearest, resolve_backend
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.errors import UserError

CUDA = [pytest.param(name, marks=pytest.mark.gpu) for name in ("torch", "triton", "faiss", "cuml")]


def lloyd_in_float64(points: Tensor, start: Tensor, iterations: int) -> np.ndarray:
    """Spherical k-means as in a textbook, in float64 numpy but for centroids, which are float32 numbers."""
    data, centroids = points.double().numpy(), normalize(start.float(), dim=1).to(points.dtype).double().numpy()
    for iteration in range(iterations + 1):
        ids: np.ndarray = (data @ centroids.T).argmax(axis=1)
        if iteration == iterations:
            break
        for number in np.unique(ids):
            total = data[ids == number].sum(axis=0)
            rounded = torch.from_numpy(total / np.linalg.norm(total)).float().to(points.dtype)
            centroids[number] = rounded.double().numpy()
    return ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("n", "d", "k"), [(1023, 17, 5), (517, 130, 33), (300, 8, 1), (40, 3, 40), (1, 4, 1)])
def test_every_back_end_gives_the_same_bits(n: int, d: int, k: int, dtype: torch.dtype) -> None:
    points = blobs(n, d, max(3, k // 2)).to(dtype)
    start = points[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]].float()
    found = spherical_kmeans(points, k, iterations=6, init=start, backend="torch")
    np.testing.assert_array_equal(found.assignments.numpy(), lloyd_in_float64(points, start, 6))
    equal(found, spherical_kmeans(points, k, iterations=6, init=start, backend="faiss"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", CUDA)
def test_back_ends_on_cuda(backend: Any, dtype: torch.dtype) -> None:
    points = blobs(5001, 130, 60).to(dtype)
    cpu = spherical_kmeans(points, 77, init=points[:77].float(), backend="torch")
    found = spherical_kmeans(points.cuda(), 77, init=points[:77].float().cuda(), backend=backend)
    torch.testing.assert_close(found.centroids.cpu(), cpu.centroids, atol=1e-6, rtol=0)
    assert torch.equal(found.assignments.cpu(), cpu.assignments) and torch.equal(found.counts.cpu(), cpu.counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_cuml_gets_float32_arrays_of_cupy(k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place one that has the neighbours in the wrong order, and as CuPy NumPy."""

    class NearestNeighbors:
        def __init__(self, **settings: Any) -> None:
            self.wanted = {"algorithm": "brute", "metric": "inner_product", "output_type": "cupy"}
            assert settings == {"n_neighbors": min(2, k), **self.wanted}

        def fit(self, rows: np.ndarray) -> None:
            assert rows.dtype == np.float32 and rows.flags.c_contiguous
            self.rows = rows

        def kneighbors(self, rows: np.ndarray, n_neighbors: int, return_distance: bool) -> np.ndarray:
            assert rows.dtype == np.float32 and rows.flags.c_contiguous and not return_distance
            return (rows @ self.rows.T).argsort(axis=1)[:, -n_neighbors:].astype(np.int64)

    monkeypatch.setitem(sys.modules, "cuml", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuml.neighbors", SimpleNamespace(NearestNeighbors=NearestNeighbors))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=lambda rows: rows.numpy()))
    monkeypatch.setattr(kmeans_backends, "CPU_ROWS", 100)
    points = blobs(307, 12, 5).to(dtype)
    (wanted, best), (found, product) = (nearest(of, points, points[:k], 1.0, slice(307)) for of in ("torch", "cuml"))
    assert torch.equal(found, wanted)
    torch.testing.assert_close(product, best, atol=1e-6, rtol=0)


def test_equal_centroids_and_equal_points() -> None:
    """Every product is a tie or nearly one: the lowest id takes all, on both back ends."""
    points, start = torch.eye(7)[:1].repeat(50, 1), torch.eye(7)[:1].repeat(6, 1)
    for backend in ("torch", "faiss"):
        found = spherical_kmeans(points, 6, init=start, iterations=3, backend=backend)  # type: ignore[arg-type]
        assert found.counts.tolist() == [50, 0, 0, 0, 0, 0]
        assert found.objective.item() == pytest.approx(1.0, abs=1e-6)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("empty", ["split", "reseed"])
def test_any_number_of_threads_gives_the_same_bits(empty: Any) -> None:
    points, found = blobs(20_011, 17, 25), []
    for count in (1, 2, 5):
        with threads(count):
            generator = torch.Generator().manual_seed(0)
            found.append(spherical_kmeans(points, 50, iterations=4, empty=empty, generator=generator))
            assert torch.get_num_threads() == count
    equal(found[0], found[1])
    equal(found[0], found[2])


def test_threads_leave_the_matmul_precision_as_it_was_and_do_not_use_it() -> None:
    points = blobs(30_011, 17, 25)
    expected = lloyd_in_float64(points, points[:50], 3)
    with medium(), threads(2):
        for _ in range(5):
            found = spherical_kmeans(points, 50, iterations=3, init=points[:50])
            assert torch.get_float32_matmul_precision() == "medium"
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found.assignments.numpy(), expected)


def test_ranks_give_the_bits_of_one() -> None:
    for ends in run_jobs([{"ranks": ranks, "check": "kmeans", "usual": True} for ranks in CUTS]):
        assert [end["code"] for end in ends] == [0] * len(ends), ends


def test_absent_back_ends_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "missing_compiler", lambda language: None)
    monkeypatch.setattr(kmeans_backends, "missing_compiler", lambda language: None)
    with monkeypatch.context() as patch:
        for name in ("triton", "faiss", "cuml"):
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=rf"{name}, which is not installed; in a checkout: pip install '\.\["):
                resolve_backend(name, torch.device("cuda"))  # type: ignore[arg-type]
        assert all(resolve_backend("auto", torch.device(where)) == "torch" for where in ("cuda", "cpu"))
    pytest.importorskip("triton", reason="triton is not installed")
    assert resolve_backend("auto", torch.device("cuda")) == "triton"
    with pytest.raises(UserError, match="cuml, but the device is cpu"):
        resolve_backend("cuml", torch.device("cpu"))
    assert resolve_backend("faiss", torch.device("cpu")) == "faiss"


def test_without_a_compiler_auto_is_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert resolve_backend("auto", torch.device("cuda")) == "torch"
    with pytest.raises(UserError, match=r"triton needs a C compiler \(no-such-compiler\).* use torch or auto"):
        resolve_backend("triton", torch.device("cuda"))


@pytest.mark.parametrize(("k", "dtype"), [pytest.param(512, "float32", marks=pytest.mark.soak), (128, "bfloat16")])
def test_extra_memory_is_less_than_a_twelfth_of_the_bank(k: int, dtype: str) -> None:
    """Peak resident memory of a process that clusters a bank of 102 or 205 MB, above what it had before."""
    code = f"""
        import resource, torch
        from unfused_fast.clustering.kmeans import spherical_kmeans
        torch.set_num_threads(2)
        points = torch.empty(100_000, 512, dtype=torch.{dtype})
        for rows in points.split(1000):
            rows.copy_(torch.nn.functional.normalize(torch.randn(len(rows), 512), dim=1))
        spherical_kmeans(points[:9000], 128, iterations=1)  # libraries load, thread pools start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spherical_kmeans(points, {k}, iterations=1)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) * 1024 / (points.numel() * points.itemsize))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.08
