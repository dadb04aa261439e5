"""What predicts a clip's cluster from its projection, re-made at each clustering: prototypes, or DECAR-v1's linear p.

B clips in a batch, P size of a projection, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, relu

from unfused_fast.clustering import Clustering
from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.strict_state import expected

INITIAL_STD = 0.01
"""Standard deviation of p's first weights; its biases start at 0. Source: authors of DECAR."""


def resolve_k(config: Config, clips: int) -> int:
    """Clusters of the first head; 0: the algorithm finds them. Raises UserError: more than clips, in any head."""
    wanted = max(config.cluster.heads, key=lambda k: 0 if k == "auto" else k)
    if config.cluster.algo == "pic":
        return 0
    if wanted == "auto":
        found = max(2, min(512, clips // 8))
        console.once(f"cluster.k: auto is {found} for {clips} clips")
        return min(found, clips)
    if wanted > clips:
        raise UserError(
            f"cluster.k = {wanted}, but the train split has {clips} clips; "
            f"use --set cluster.k=auto, or a number up to {clips}"
        )
    return int(config.cluster.heads[0])


class Prototypes:
    """Prototypes: the centroids themselves, frozen, or with `prototypes.freeze` false trained until the next clustering
    by an SGD without momentum, which has no state. Source: paper section 3.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.temperature, self.frozen = config.loss.temperature, config.prototypes.freeze
        self.rate, self.weight_decay = config.optim.head_lr, config.optim.head_weight_decay
        self.vectors = torch.zeros(0, config.model.proj_dim, device=device)

    def remake(self, clustering: Clustering, seed: int) -> None:
        """The centroids become the prototypes."""
        assert clustering.prototypes is not None
        self._take(clustering.prototypes)

    def scores(self, projections: Tensor) -> Tensor:
        """(B, P) float32 -> (B, K) logits z C / T."""
        return projections @ self.vectors.T / self.temperature

    def parameters(self) -> list[Tensor]:
        """What is trained: nothing of frozen prototypes."""
        return [] if self.frozen else [self.vectors]

    def step(self) -> None:
        """Frozen prototypes stay as they are between clusterings; others take a step, and have unit norm after it."""
        if self.frozen:
            return
        assert self.vectors.grad is not None
        gradient = self.vectors.grad + self.weight_decay * self.vectors.detach()
        self._take(normalize(self.vectors.detach() - self.rate * gradient, dim=1))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"prototypes": self.vectors.detach()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of tensors. Raises UserError: they are not there, or of another width."""
        found = expected(tensors, "prototypes", torch.float32, (None, self.vectors.shape[1]))
        self._take(found.to(self.vectors.device))

    def _take(self, vectors: Tensor) -> None:
        self.vectors = vectors if self.frozen else vectors.clone().requires_grad_()


class PredictionHead:
    """A linear layer p on ReLU(z), trained by its own SGD without momentum. Source: DECAR section 3; its authors."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config.optim, device
        self.weight = nn.Parameter(torch.zeros(0, config.model.proj_dim, device=device))
        self.bias = nn.Parameter(torch.zeros(0, device=device))
        self._optimize()

    def remake(self, clustering: Clustering, seed: int) -> None:
        """K new outputs: clusters have no order, so the last epoch's weights would mean nothing."""
        generator = torch.Generator().manual_seed(seed)
        shape = len(clustering.counts), self.weight.shape[1]
        self.weight = nn.Parameter((torch.randn(shape, generator=generator) * INITIAL_STD).to(self.device))
        self.bias = nn.Parameter(torch.zeros(shape[0], device=self.device))
        self._optimize()

    def scores(self, projections: Tensor) -> Tensor:
        """(B, P) float32 -> (B, K) logits."""
        return linear(relu(projections), self.weight, self.bias)

    def parameters(self) -> list[Tensor]:
        """Of p."""
        return [self.weight, self.bias]

    def step(self) -> None:
        """One update from the gradients of the last backward pass."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs; SGD without momentum has no state."""
        return {"head.weight": self.weight.detach(), "head.bias": self.bias.detach()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of tensors. Raises UserError: they are not there, or of another width."""
        weight = expected(tensors, "head.weight", torch.float32, (None, self.weight.shape[1]))
        bias = expected(tensors, "head.bias", torch.float32, (len(weight),))
        self.weight, self.bias = nn.Parameter(weight.to(self.device)), nn.Parameter(bias.to(self.device))
        self._optimize()

    def _optimize(self) -> None:
        self._optimizer = torch.optim.SGD(
            [self.weight, self.bias], self.config.head_lr, weight_decay=self.config.head_weight_decay
        )


def build_predictor(config: Config, device: torch.device) -> Prototypes | PredictionHead:
    """By `model.prediction`."""
    return Prototypes(config, device) if config.model.prediction == "prototypes" else PredictionHead(config, device)
