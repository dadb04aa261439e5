"""k-means reads rows where they lie: in place or in blocks, with little memory beside them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from points import blobs, equal
from torch import Tensor

from unfused_fast.clustering import backends as kmeans_backends
from unfused_fast.clustering import rows
from unfused_fast.clustering.kmeans import spherical_kmeans
from unfused_fast.clustering.rows import Points


class InBlocks:
    """`Rows` that count what they hand out."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.most = tensor, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def block(self, start: int, stop: int) -> Tensor:
        self.most = max(self.most, stop - start)
        return self.tensor[start:stop].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("init", ["random", "kmeans++"])
def test_blocks_give_the_bits_of_memory(init: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(1013, 29, 15).to(dtype)
    expected = spherical_kmeans(points, 40, init=init, empty="reseed", generator=torch.Generator().manual_seed(3))
    for size in (1, 100, 1013):
        monkeypatch.setattr(rows, "STREAM_BYTES", size * 29 * dtype.itemsize)
        streamed = InBlocks(points)
        if size > 1:  # one by one is slow; once is enough
            streamed_generator = torch.Generator().manual_seed(3)
            equal(expected, spherical_kmeans(streamed, 40, init=init, empty="reseed", generator=streamed_generator))
            assert streamed.most <= size


def test_rows_are_taken_from_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block once and in order; rows far apart alone, so that no more is read than must be."""
    points = torch.randn(1000, 4)
    read: list[tuple[int, int]] = []

    class Noted(InBlocks):
        def block(self, start: int, stop: int) -> Tensor:
            read.append((start, stop))
            return super().block(start, stop)

    monkeypatch.setattr(rows, "STREAM_BYTES", 100 * 16)
    monkeypatch.setattr(rows, "NEAR_BYTES", 20 * 16)
    held = Points(Noted(points), None)
    for ids, blocks in (
        (torch.randperm(1000), [(start, start + 100) for start in range(0, 1000, 100)]),
        (torch.tensor([500, 3, 999, 20, 3]), [(3, 21), (500, 501), (999, 1000)]),
        (torch.tensor([], dtype=torch.int64), []),
    ):
        read.clear()
        assert torch.equal(held.take(ids), points[ids])
        assert read == blocks


def test_points_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss is handed the very memory of the bank, and so is torch."""
    points, seen = blobs(600, 16, 5), set()
    for name in ("torch", "faiss"):
        original = kmeans_backends._TOP_TWO[name]

        def watched(rows: Tensor, centroids: Tensor, original: Any = original) -> Any:
            seen.add(rows.data_ptr())
            return original(rows, centroids)

        monkeypatch.setitem(kmeans_backends._TOP_TWO, name, watched)
        before = points.clone()
        spherical_kmeans(points, 5, backend=name)  # type: ignore[arg-type]
        assert torch.equal(points, before)
    assert seen == {points.data_ptr()}


@pytest.mark.parametrize(
    ("threads", "rows", "k", "dtype"),
    [(1, 50_000, 128, "float32"), (2, 100_000, 512, "float32"), (2, 100_000, 128, "bfloat16")],
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
