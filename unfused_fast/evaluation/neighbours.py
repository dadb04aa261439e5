"""k nearest neighbours by cosine similarity, without training.   N train clips, Q queries, D features, C classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

BLOCK = 1024
"""Queries whose similarities to all train clips are held at once."""
NO_DISTANCE = 1e-12
"""A neighbour that is nearer counts as one at this distance: it outvotes all others."""


def neighbour_shares(train: Tensor, targets: Tensor, queries: Tensor, k: int, classes: int) -> Tensor:
    """(N, D), (N,) int64 labels or (N, C) bool, (Q, D) -> (Q, C): share of the votes of a query's k neighbours for each
    class. The prediction of a single label is the argmax; k is at most N.

    A vote weighs 1 / (1 - cosine), as in scikit-learn's KNeighborsClassifier(metric="cosine", weights="distance").
    Ours: with one label a class, equal votes would all be ties.
    """
    if targets.ndim == 1:
        targets = one_hot(targets, classes)
    unit, votes, k = normalize(train.double(), dim=1), targets.double(), min(k, len(train))
    shares = []
    for block in torch.split(normalize(queries.double(), dim=1), BLOCK):
        similarity, nearest = (block @ unit.T).topk(k, dim=1)
        weights = 1 / (1 - similarity).clamp(min=NO_DISTANCE)
        shares.append(torch.einsum("qk,qkc->qc", weights / weights.sum(dim=1, keepdim=True), votes[nearest]))
    return torch.cat(shares).float()
