"""DECAR-v2: the centroids of the memory bank are the frozen prototypes of a softmax.

Each epoch: cluster the bank (assignment phase), make the centroids the prototypes, predict each clip's cluster from one
view, and write that view's projection, or with `bank.view` = separate another's, to the bank (training phase). Source:
UnFuSeD section 3, part 1. `loss.instance` adds a term of SimCLR or Barlow Twins (instance.py).

B clips in a batch, P size of a projection, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unfused_fast.methods.deep_clustering import DeepClustering, Head


class Prototypes(Head):
    """The centroids, fixed, or with `prototypes.freeze` false trained until the next clustering. Source: paper
    section 3.
    """

    def make(self, k: int, centroids: Tensor | None, generator: torch.Generator) -> None:
        """The centroids become the prototypes."""
        assert centroids is not None
        frozen = self.config.prototypes.freeze
        self.prototypes = nn.Parameter(centroids if frozen else centroids.clone(), requires_grad=not frozen)

    def scores(self, projections: Tensor) -> Tensor:
        """(B, P) float32 -> (B, K) logits z C / T."""
        return projections @ self.prototypes.T / self.config.loss.temperature

    def centroids(self) -> Tensor | None:
        """The current prototypes; None before the first clustering."""
        return None if self.assignments is None else self.prototypes.detach()

    @torch.no_grad()
    def step(self) -> None:
        """Trained prototypes have unit norm after each update."""
        vectors, optim = self.prototypes, self.config.optim
        if vectors.grad is not None:
            gradient = vectors.grad + optim.head_weight_decay * vectors
            vectors.copy_(normalize(vectors - optim.head_lr * gradient, dim=1))
            vectors.grad = None


class DecarV2(DeepClustering):
    """Deep clustering by prototypes."""

    title, head = "DECAR-v2", Prototypes
