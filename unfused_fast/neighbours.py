"""k nearest neighbours by cosine similarity, without training.   N train clips, Q queries, D features, C classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

BLOCK = 1024
"""Queries whose similarities to all train clips are held at once."""


def neighbour_shares(train: Tensor, targets: Tensor, queries: Tensor, k: int, classes: int) -> Tensor:
    """(N, D), (N,) int64 labels or (N, C) bool, (Q, D) -> (Q, C): share of a query's k neighbours that has each class.

    The prediction of a single label is the argmax; of equal shares the first class, as in scikit-learn's
    KNeighborsClassifier. k is at most N.
    """
    if targets.ndim == 1:
        targets = one_hot(targets, classes)
    unit, votes, k = normalize(train.double(), dim=1), targets.double(), min(k, len(train))
    shares = []
    for block in torch.split(normalize(queries.double(), dim=1), BLOCK):
        nearest = (block @ unit.T).topk(k, dim=1).indices
        shares.append(votes[nearest].mean(dim=1))
    return torch.cat(shares).float()
