"""Spherical k-means gives one answer, that of float64: on every back end, number of threads and of ranks.   N points, D
features, K clusters."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from points import blobs, equal
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast import optional
from unfused_fast.clustering import backends as kmeans_backends
from unfused_fast.clustering.backends import resolve_backend
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.distributed import ALONE
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


def test_triton_gives_the_same_bits_in_its_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    code = """
        import torch
        from unfused_fast.clustering.kmeans import spherical_kmeans
        for n, d, k, dtype in [(301, 17, 5, torch.float32), (130, 33, 19, torch.bfloat16), (40, 5, 1, torch.float32)]:
            points = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
            points = torch.nn.functional.normalize(points, dim=1).to(dtype)
            one, other = (
                spherical_kmeans(points, k, iterations=4, init=points[:k], empty="reseed", backend=name)
                for name in ("torch", "triton")
            )
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other)), (n, d, k)
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", CUDA)
def test_back_ends_on_cuda(backend: Any, dtype: torch.dtype) -> None:
    points = blobs(5001, 130, 60).to(dtype)
    cpu = spherical_kmeans(points, 77, init=points[:77].float(), backend="torch")
    found = spherical_kmeans(points.cuda(), 77, init=points[:77].float().cuda(), backend=backend)
    torch.testing.assert_close(found.centroids.cpu(), cpu.centroids, atol=1e-6, rtol=0)
    assert torch.equal(found.assignments.cpu(), cpu.assignments) and torch.equal(found.counts.cpu(), cpu.counts)


def test_equal_centroids_and_equal_points() -> None:
    """Every product is a tie or nearly one: the lowest id takes all, on both back ends."""
    points, start = torch.eye(7)[:1].repeat(50, 1), torch.eye(7)[:1].repeat(6, 1)
    for backend in ("torch", "faiss"):
        found = spherical_kmeans(points, 6, init=start, iterations=3, backend=backend)  # type: ignore[arg-type]
        assert found.counts.tolist() == [50, 0, 0, 0, 0, 0]
        assert found.objective.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("empty", ["split", "reseed"])
def test_any_number_of_threads_gives_the_same_bits(empty: Any) -> None:
    points = blobs(20_011, 17, 25)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(
                spherical_kmeans(points, 50, iterations=4, empty=empty, generator=torch.Generator().manual_seed(0))
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    equal(found[0], found[1])
    equal(found[0], found[2])


def test_threads_leave_the_matmul_precision_as_it_was_and_do_not_use_it() -> None:
    points = blobs(30_011, 17, 25)
    threads = torch.get_num_threads()
    expected = lloyd_in_float64(points, points[:50], 3)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.set_num_threads(2)
        for _ in range(5):
            found = spherical_kmeans(points, 50, iterations=3, init=points[:50])
            assert torch.get_float32_matmul_precision() == "medium"
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found.assignments.numpy(), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(threads)


RANKS = """
    import sys
    import torch
    import torch.multiprocessing as mp
    from unfused_fast.clustering.kmeans import spherical_kmeans
    from unfused_fast.distributed.ranks import Ranks
    from unfused_fast.launch import Place

    CASES = [(init, empty, dtype) for dtype in (torch.float32, torch.bfloat16)
             for init, empty in (("random", "keep"), ("kmeans++", "split"), ("given", "reseed"))]

    def points_of(dtype):
        points = torch.randn(1003, 37, generator=torch.Generator().manual_seed(0)) + 0.3
        return torch.nn.functional.normalize(points, dim=1).to(dtype)

    def run(rank, cuts, port, out):
        torch.set_num_threads(1)
        world = len(cuts) - 1
        with Ranks(Place(rank, world, rank, world, "127.0.0.1", port)) as ranks:
            torch.save(clusterings(ranks, cuts), f"{out}/{world}-{rank}.pt")

    def clusterings(ranks, cuts):
        rank = ranks.rank
        found = {}
        for init, empty, dtype in CASES:
            points = points_of(dtype)
            # twenty starts in one place and a copy of a row: empty clusters and exact ties
            given = torch.cat([points[:20].float(), points[:1].float().expand(20, -1)])
            mine = points[cuts[rank] : cuts[rank + 1]].clone()
            generator = torch.Generator().manual_seed(5 + rank * 7)  # rank 0's counts
            result = spherical_kmeans(
                mine, 40, iterations=6, init=given if init == "given" else init, empty=empty, n_init=2,
                generator=generator, ranks=ranks, previous=torch.arange(cuts[rank], cuts[rank + 1]) % 40,
            )
            found[init, empty, dtype] = tuple(result)
        return found

    if __name__ == "__main__":
        out, port = sys.argv[1], int(sys.argv[2])
        for number, cuts in enumerate(([0, 1003], [0, 502, 1003], [0, 17, 17, 640, 1003])):
            # forked: torch is imported once, and has started no thread yet
            mp.start_processes(run, (cuts, port + number, out), nprocs=len(cuts) - 1, start_method="fork")
"""


def test_ranks_give_the_bits_of_one(tmp_path: Any) -> None:
    """1, 2 and 4 ranks (one of them without rows), in processes of their own, beside this process alone."""
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    port = 20000 + np.random.default_rng().integers(20000)
    subprocess.run([sys.executable, script, tmp_path, str(port)], check=True)
    for case, alone in runpy.run_path(str(script))["clusterings"](ALONE, [0, 1003]).items():
        for world in (1, 2, 4):
            every = [torch.load(tmp_path / f"{world}-{rank}.pt")[case] for rank in range(world)]
            assert torch.equal(alone[1], torch.cat([one[1] for one in every])), (world, case)
            for one in every:
                assert all(torch.equal(alone[index], one[index]) for index in (0, 2, 3)), (world, case)


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


@pytest.mark.parametrize(
    ("threads", "rows", "k", "dtype"),
    [(2, 100_000, 512, "float32"), (2, 100_000, 128, "bfloat16")],
)
def test_extra_memory_is_less_than_a_twelfth_of_the_bank(threads: int, rows: int, k: int, dtype: str) -> None:
    """Peak resident memory of a process that clusters a bank of 102 or 205 MB, above what it had before."""
    code = f"""
        import resource, torch
        from unfused_fast.clustering.kmeans import spherical_kmeans
        torch.set_num_threads({threads})
        points = torch.empty({rows}, 512, dtype=torch.{dtype})
        for rows in points.split(1000):
            rows.copy_(torch.nn.functional.normalize(torch.randn(len(rows), 512), dim=1))
        spherical_kmeans(points[:9000], 128, iterations=1)  # libraries load, thread pools start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spherical_kmeans(points, {k}, iterations=2)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) * 1024 / (points.numel() * points.itemsize))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.08
