"""Heads besides the first, `cluster.k` as a list.   N clips, B clips in a batch, K clusters, P size of a projection.

Each clusters the same memory bank anew, into its own K clusters, and has its own prototypes; the projector is shared,
and the loss is the mean over all heads. Source: DeepCluster-v2 (several heads in one run); the authors' code takes a
list, of one entry.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unfused_fast.clustering import Clustering
from unfused_fast.config import Config
from unfused_fast.data import key
from unfused_fast.stages.prototypes import build_predictor
from unfused_fast.strict_state import expected

FIRST_STREAM = 2
"""Tells the seeds of further heads from those of the first."""
Cluster = Callable[[int, int, Tensor | None, Tensor | None], Clustering]
"""K, seed, centroids (K, P) and assignments (N,) of the last clustering or None -> a clustering of the bank."""


class FurtherHeads:
    """Assignments and predictors of all heads but the first; without any, every method does nothing."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device, self.ks = device, config.cluster.heads[1:]
        self.predictors = [build_predictor(config, device) for _ in self.ks]
        self.assignments: list[Tensor] = []

    def cluster(self, cluster: Cluster, seed: int, epoch: int) -> None:
        """Clusters the bank for each head, and re-makes what predicts its clusters."""
        found = []
        for number, (k, predictor) in enumerate(zip(self.ks, self.predictors, strict=True)):
            previous = self.assignments[number] if self.assignments else None
            start = predictor.tensors().get("prototypes") if self.assignments else None
            stream = FIRST_STREAM + 2 * number
            made = cluster(int(k), key(seed, epoch, stream) >> 1, start, previous)
            predictor.remake(made, key(seed, epoch, stream + 1) >> 1)
            found.append(made.assignments)
        self.assignments = found

    def mean_loss(self, first: Tensor, projections: Tensor, rows: Tensor) -> Tensor:
        """() loss of the first head, (B, P) float32 projections, (B,) rows of the bank -> () mean over all heads."""
        if not self.predictors:
            return first
        pairs = zip(self.predictors, self.assignments, strict=True)
        losses = [cross_entropy(predictor.scores(projections), ids[rows]) for predictor, ids in pairs]
        return torch.stack([first, *losses]).mean()

    def parameters(self) -> list[Tensor]:
        """What is trained beside the network."""
        return [parameter for predictor in self.predictors for parameter in predictor.parameters()]

    def step(self) -> None:
        """One update of what is trained beside the network."""
        for predictor in self.predictors:
            predictor.step()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        found: dict[str, Tensor] = {}
        for number, (predictor, ids) in enumerate(zip(self.predictors, self.assignments, strict=True), 2):
            found |= {f"head{number}.{name}": tensor for name, tensor in predictor.tensors().items()}
            found[f"head{number}.assignments"] = ids
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of tensors. Raises UserError: they are not there, or of another size."""
        found = []
        for number, predictor in enumerate(self.predictors, 2):
            prefix = f"head{number}."
            predictor.load({name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
            found.append(expected(tensors, f"{prefix}assignments", torch.int64, (None,)).to(self.device))
        self.assignments = found
