"""DECAR-v1: a linear layer, created again each epoch, predicts clusters of PCA-whitened rows.

In preset decar-v1 a separate pass fills the bank, and clips are drawn evenly over the clusters. Source: DECAR
section 3 and its authors' code.

B clips in a batch, P size of a projection, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from unfused_fast.methods.deep_clustering import DeepClustering, Head

INITIAL_STD = 0.01
"""Standard deviation of p's first weights; its biases start at 0. Source: authors of DECAR."""


class PredictionHead(Head):
    """A linear layer p on ReLU(z), trained by its own SGD without momentum. Source: DECAR section 3; its authors."""

    def make(self, k: int, centroids: Tensor | None, generator: torch.Generator) -> None:
        """K new outputs: clusters have no order, so the last epoch's weights do not apply to them."""
        weight = torch.randn((k, self.width), generator=generator) * INITIAL_STD
        self.weight, self.bias = nn.Parameter(weight.to(self.device)), nn.Parameter(torch.zeros(k, device=self.device))

    def scores(self, projections: Tensor) -> Tensor:
        return linear(relu(projections), self.weight, self.bias)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(parameter, alpha=self.config.optim.head_weight_decay)
            parameter.add_(parameter.grad, alpha=-self.config.optim.head_lr)
            parameter.grad = None


class DecarV1(DeepClustering):
    """Deep clustering by a linear head."""

    title, head = "DECAR-v1", PredictionHead
