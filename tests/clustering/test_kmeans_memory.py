"""k-means reads rows where they lie: in place, with little memory beside them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from points import blobs
from torch import Tensor

from unfused_fast.clustering import backends as kmeans_backends
from unfused_fast.clustering.kmeans import spherical_kmeans


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
