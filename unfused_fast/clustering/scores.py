"""Measures of clusterings, comparison of two, and the signs that stage 1 is not learning.   N clips, K clusters.

A bank with nearly collinear rows gives a warning; clusters that collapse (nearly all clips in one) several times in a
row stop the run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.errors import UserError

LARGEST_SHARE = 0.95
"""Share of the clips in one cluster from which a clustering counts as collapsed. Ours: predicting that cluster for
every clip then gives nearly no loss; the largest share in a run that learns is far below."""
IN_A_ROW = 3
"""Collapsed clusterings in a row that stop a run. Ours: a first one may be the untrained network's, as of an
EfficientNet whose BatchNorm has no statistics yet (all clips in one cluster, then 37 % after an epoch)."""
COLLINEAR = 0.97
"""Norm of the bank's mean direction from which its rows count as nearly collinear. Ours: it is between the values of
first banks filled in eval mode and in train mode, on real clips (docs/clustering.md).
"""


class ClusterSizes(NamedTuple):
    """Measures of how even the clusters are; host numbers."""

    empty: int
    perplexity: float
    """exp(H) of the shares of the clusters: K when all are equal, 1 when all clips are in one."""
    largest_share: float


def normalised_mutual_information(first: Tensor, second: Tensor) -> float:
    """NMI of two assignments (N,): I(A; B) / sqrt(H(A) H(B)), 1 for equal partitions. Source: DECAR Eq. 3.

    Ours: only pairs of clusters that share clips are counted; a matrix of all pairs would have 34 GB at K = 65,536.
    """
    clips, columns = len(first), int(second.max()) + 1
    pairs, counts = torch.unique(first * columns + second, return_counts=True)
    joint, row, column = (shared.double() / clips for shared in (counts, torch.bincount(first), torch.bincount(second)))
    independent = row[pairs // columns] * column[pairs % columns]
    information = torch.special.xlogy(joint, joint / independent).sum()
    entropies = -torch.special.xlogy(row, row).sum(), -torch.special.xlogy(column, column).sum()
    denominator = math.sqrt(float(entropies[0]) * float(entropies[1]))
    return float(information) / denominator if denominator > 0 else 1.0


def stalled(nmis: list[float], patience_epochs: int, every_epochs: int) -> bool:
    """Whether the NMI of consecutive clusterings has had no new largest value for `patience_epochs` epochs, with a
    clustering every `every_epochs` epochs; never with a patience of 0.

    Source: DECAR section 5 (no improvement for 10 epochs; it clusters in each).
    """
    if not patience_epochs or not nmis:
        return False
    clusterings = len(nmis) - 1 - nmis.index(max(nmis))
    return clusterings * every_epochs >= patience_epochs


def cluster_sizes(counts: Tensor) -> ClusterSizes:
    """(K,) clips of each cluster -> empty ones, perplexity, largest share; one host read."""
    shares = counts.double() / counts.sum()
    values = [(counts == 0).sum().double(), torch.exp(-torch.special.xlogy(shares, shares).sum()), shares.max()]
    empty, perplexity, largest = torch.stack(values).tolist()
    return ClusterSizes(int(empty), perplexity, largest)


class Collapsed(UserError):
    """The clusters have collapsed; what to try."""


class Collapse:
    """Counts the collapsed clusterings in a row, and warns once of a collinear bank."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.in_a_row = 0
        """Stored in checkpoints."""
        self._warned = False

    def check(self, largest_share: float, k: int, epoch: int) -> None:
        """One clustering into K clusters, before the epoch; one cluster alone cannot collapse.

        Raises:
            Collapsed: it is the last of IN_A_ROW; the count is then as before it, for a checkpoint of the epoch before.
        """
        if k < 2 or largest_share < LARGEST_SHARE:
            self.in_a_row = 0
            return
        if self.in_a_row + 1 < IN_A_ROW:
            self.in_a_row += 1
            return
        cluster, rate = self._config.cluster, self._config.optim.lr
        split = ", or --set cluster.empty=split" if cluster.algo == "spherical" and cluster.empty == "keep" else ""
        raise Collapsed(
            f"epoch {epoch}: the clusters have collapsed: {IN_A_ROW} clusterings in a row had at least "
            f"{LARGEST_SHARE:.0%} of the clips in one of {k} clusters (now {largest_share:.1%}), which leaves nothing "
            f"to learn; start again with --overwrite and --set optim.lr={rate / 10:g} (now {rate:g}), or more clips a "
            f"batch (train.batch_size){split}"
        )

    def check_spread(self, mean_direction: float, epoch: int) -> None:
        """Warns in one sentence, once, of a bank whose rows are nearly collinear."""
        if mean_direction < COLLINEAR or self._warned:
            return
        self._warned = True
        bank, rate = self._config.bank, self._config.optim.lr
        if bank.fill == "pass":
            tries = "bank.fill=training"  # a pass is in eval mode
        else:
            tries = "bank.init_mode=train" if bank.init_mode == "eval" else f"optim.lr={rate / 10:g} (now {rate:g})"
        console.print(
            f"warning: epoch {epoch}: the rows of the memory bank are nearly collinear (the norm of their mean "
            f"direction is {mean_direction:.3f}; 1 is collinear, runs that learn stay below {COLLINEAR}), so "
            f"clusters carry little information about the clips; try --set {tries}",
            style="yellow",
        )
