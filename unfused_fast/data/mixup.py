"""The memory of past crops that mixup mixes clips with, and k-mix, which takes the most different ones.

B clips in a batch, F mel bins, T frames, K clusters.
Source: BYOL-A section 3 (mixup); SLICER, arXiv 2211.01519, and its authors (k-mix).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NO_CLUSTER = torch.iinfo(torch.int64).max
"""Of a place that holds no crop; it sorts behind every cluster."""


def clusters_of(crops: Tensor, centroids: Tensor) -> Tensor:
    """(B, 1, F, T) normalised crops, (K, F) of unit norm -> (B,) nearest by the cosine of their means over time."""
    return (time_means(crops) @ centroids.T).argmax(dim=1)


def time_means(crops: Tensor) -> Tensor:
    """(B, 1, F, T) -> (B, F) means over time, of unit norm."""
    return normalize(crops.mean(dim=3)[:, 0], dim=1)


def farthest_first(centroids: Tensor) -> Tensor:
    """(K, F) of unit norm -> (K, K) for each cluster all of them, from the farthest to itself."""
    return (centroids @ centroids.T).argsort(dim=1, stable=True)


class MixupMemory:
    """The last normalised crops of each of P partitions of the set, on the device; each clip is mixed with one of its
    own partition, never with itself: with any, or with `clustered` with one of the cluster that is farthest from its
    own of those that the partition holds. P partitions of S crops.

    Its content depends on the order of batches, so the memory is part of a checkpoint. Ours: float16, which
    keeps a normalised log-mel to 1e-3 of its spread at half the bytes; and by partition, so that a process needs no
    crops of others.
    """

    def __init__(self, size: int, bounds: Tensor, bins: int, frames: int, clustered: bool = False) -> None:
        """Args:
        size: S.
        bounds: (P - 1,) int64 first clip id of each partition but the first; on the device.
        """
        self.size, self.partitions, self._bounds, device = size, len(bounds) + 1, bounds, bounds.device
        slots = size * self.partitions + 1  # the last takes what is not kept
        self.crops = torch.zeros(slots, 1, bins, frames, dtype=torch.float16, device=device)
        self.clip_ids = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.written = torch.zeros(self.partitions, dtype=torch.int64, device=device)
        """(P,) crops stored so far."""
        self.clusters = torch.full((slots,), NO_CLUSTER, dtype=torch.int64, device=device) if clustered else None
        """Cluster of each crop."""

    def _partition(self, clip_ids: Tensor) -> Tensor:
        return torch.bucketize(clip_ids, self._bounds, right=True)

    def draw(self, clip_ids: Tensor, draws: Tensor, ratio: float, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) ids, draws (..., B, 2) -> which past crop each is mixed with, and the weight of that crop, 0 where there
        is none; (..., B). `order` (B, K), for draws (B, 2): of a clustered memory, the clusters from the farthest of
        each clip's to its own.
        """
        partition = self._partition(clip_ids)
        if order is None:
            filled = self.written.clamp(max=self.size)[partition]
        else:
            ranked, filled, begin = self._farthest(partition, order)
        slot = (draws[..., 0] * filled).long().minimum((filled - 1).clamp(min=0))
        if order is not None:
            slot = ranked[partition, (begin + slot).clamp(max=self.size - 1)]
        slot = partition * self.size + slot
        usable = (self.clip_ids[slot] != clip_ids) & (filled > 0)
        return slot, torch.where(usable, draws[..., 1] * ratio, 0.0)

    def _farthest(self, partition: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(P, S) slots of each partition, cluster by cluster; and for each clip, (B,), how many of them are in the
        first cluster of its `order` that its partition holds, and where in that list they begin.
        """
        assert self.clusters is not None
        clusters = self.clusters[:-1].view(self.partitions, self.size)
        counts = (clusters[:, :, None] == torch.arange(order.shape[1], device=order.device)).sum(dim=1)
        held = counts[partition].gather(1, order)
        place = (held > 0).long().argmax(dim=1, keepdim=True)
        begins = (counts.cumsum(dim=1) - counts)[partition].gather(1, order)
        filled, begin = (found.gather(1, place)[:, 0] for found in (held, begins))
        return clusters.argsort(dim=1, stable=True), filled, begin

    def push(self, clip_ids: Tensor, crops: Tensor, clusters: Tensor | None = None) -> None:
        """Stores a batch, overwriting the oldest crops of each partition; without waiting for the device."""
        partition = self._partition(clip_ids)
        of = partition[:, None] == torch.arange(self.partitions, device=clip_ids.device)
        count = of.sum(dim=0)
        number = of.cumsum(dim=0).gather(1, partition[:, None])[:, 0] - 1
        slot = partition * self.size + (self.written[partition] + number) % self.size
        slot = torch.where(number >= count[partition] - self.size, slot, self.size * self.partitions)
        self.crops[slot] = crops.to(self.crops.dtype)
        self.clip_ids[slot] = clip_ids
        if self.clusters is not None:
            assert clusters is not None
            self.clusters[slot] = clusters
        self.written = self.written + count
