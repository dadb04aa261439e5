"""Points to be clustered, and when two clusterings are one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.clustering.kmeans import KMeans


def blobs(count: int, dim: int, centres: int, noise: float = 0.6, seed: int = 0) -> Tensor:
    """(count, dim) unit rows around `centres` directions, taken in turn."""
    generator = torch.Generator().manual_seed(seed)
    middle = normalize(torch.randn(centres, dim, generator=generator), dim=1)
    scattered = middle[torch.arange(count) % centres] + noise * torch.randn(count, dim, generator=generator) / dim**0.5
    return normalize(scattered, dim=1)


def equal(one: KMeans, other: KMeans) -> None:
    """Asserts that two clusterings have the same bits."""
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
