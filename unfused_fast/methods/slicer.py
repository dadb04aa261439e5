"""SLICER: contrast of clips with a queue, in both directions, contrast of clusters, and k-mix.

Source: Seth et al., arXiv 2211.01519; authors of LAPE; the cluster contrast is that of Contrastive Clustering
(arXiv 2009.09687, Eq. 6) without its entropy term. MoCo, each view in turn the query of the other's key; beside it each
clip's softmax over K clusters, whose columns over a batch are compared: a cluster of one view with the same of the
other, against all others. k-mix: a clip is mixed with one of the cluster farthest away (`aug.mixup.partner`), of four
clusters of clips' mean spectra.
Needs two views, of one crop or of two, and takes local ones, as queries; a queue and a key encoder. Clusters are
compared over the clips of all ranks, but with `train.accumulate` over those of a part.

B clips in a batch, n of them on this rank, F mel bins, P size of a projection, K clusters (`cluster.k`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unfused_fast.clustering import spherical_kmeans
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import key, time_means
from unfused_fast.distributed import gather_rows
from unfused_fast.methods.deep_clustering import resolve_k
from unfused_fast.methods.method import Log, Passes, check_batch
from unfused_fast.methods.moco import MoCo
from unfused_fast.methods.signs import UsageSigns
from unfused_fast.methods.simclr import nt_xent
from unfused_fast.models import PretrainNetwork, pool_time

CENTROIDS, ITERATIONS, STARTS = 4, 20, 10
"""Of k-mix, and of the k-means that finds them. Source: authors. Ours: starts by k-means++, of which the best counts; a
start from four random rows often joins two clusters."""
SHARE, LEAST = 0.05, 1024
"""Of the clips that this k-means takes, in whole batches, and how many at least. Source: authors (a twentieth). Ours:
the least; of a small set a twentieth is hardly a clip for each centroid."""


def cluster_loss(first: Tensor, second: Tensor) -> Tensor:
    """(B, K) shares of clips in clusters, of both views; rows sum to 1 -> () NT-Xent of the 2K columns, at temperature
    1. Source: authors.
    """
    return nt_xent(torch.cat([first.T, second.T]), 1.0)


class SlicerNetwork(PretrainNetwork):
    """Encoder, projector, and the cluster head: Linear-ReLU-Linear, as wide as the encoder. Source: authors."""

    class_scores = ("clusterer",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dim = self.encoder.dim
        self.clusterer: nn.Module = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, int(config.cluster.heads[0]))
        )

    def forward(self, log_mel: Tensor) -> Any:
        """(B, 1, F, T) -> projections (B, P) and shares (B, K), in float32."""
        output = self.encoder(log_mel)
        pooled = pool_time(output.frames, output.frame_counts, self.pool)
        return self.project(output), self.clusterer(pooled).float().softmax(dim=1)


class Slicer(MoCo):
    """Contrast of clips and of clusters."""

    title = "SLICER"
    centroids: Tensor | None

    def set_up(self, clips: int) -> None:
        super().set_up(clips)
        check_batch(self.config, clips, "compares clusters over a batch")
        self.key_network.clusterer = nn.Identity()  # clusters are the query's, as in the authors' code
        self.usage = UsageSigns(self.ranks, resolve_k(self.config, clips), "clusters")
        self._wanted = max(round(SHARE * clips), min(clips, LEAST))
        wanted = self.config.aug.mixup.ratio > 0 and self.config.aug.mixup.partner == "farthest"
        self.register_buffer("centroids", torch.zeros(CENTROIDS, self.config.frontend.n_mels) if wanted else None)

    @classmethod
    def build(cls, config: Config) -> nn.Module:
        return SlicerNetwork(config)

    @property
    def mixup_centroids(self) -> Tensor | None:  # type: ignore[override]
        """(CENTROIDS, F) of k-mix."""
        return self.centroids

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        """In the first epoch finds the centroids of k-mix."""
        if epoch == 1 and self.centroids is not None:
            with self.part("k-mix"):
                self.centroids.copy_(self._found_centroids(passes))
        return super().begin_epoch(epoch, passes)

    @torch.no_grad()
    def _found_centroids(self, passes: Passes) -> Tensor:
        """(CENTROIDS, F) of the mean spectra of the clips of the first batches, the same on any number of ranks."""
        rows, count = list[Tensor](), 0
        for _, view in passes(False):
            rows.append(self.ranks.gather_parts(time_means(view), self.ranks.sizes))
            if (count := count + len(rows[-1])) >= self._wanted:
                break
        generator = torch.Generator().manual_seed(key(self.config.train.seed) >> 1)
        found = spherical_kmeans(
            torch.cat(rows), CENTROIDS, iterations=ITERATIONS, init="kmeans++", n_init=STARTS, generator=generator
        )
        console.print(
            f"k-mix: {CENTROIDS} clusters of the mean spectra of {count} clips, of {found.counts.tolist()} clips"
        )
        return self.ranks.from_first(found.centroids)

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """Sum of InfoNCE in both directions and of the cluster loss. Source: authors. Ours: the queue does not change
        between the directions, where theirs has the keys of the first in it already, each clip's own among them.
        """
        with self.part("forward key view"), torch.no_grad():
            keys = [self.run(view, network=self.key_network)[0] for view in views[:2]]
        with self.part("forward"):
            (first, *more), shares = zip(*(self.run(view) for view in views), strict=True)
        second, *local = more
        self.usage.note_shares(shares[0])
        clusters = cluster_loss(*(gather_rows(of, self.ranks) for of in shares[:2]))
        return self.contrast(([first, *local], keys[1]), ([second, *local], keys[0])) + clusters
