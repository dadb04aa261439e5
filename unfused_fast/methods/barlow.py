"""Barlow Twins: the two views' outputs correlate dimension by dimension, and no dimension with another one.

Source: Zbontar et al., arXiv 2103.03230, section 2 and Algorithm 1; on AudioNTT Hanton, "Audio Barlow Twins"
(github.com/jonahanton/SSL_audio), whose search found lambda flat from 0.002 to 0.05 and one hidden layer enough.
Needs two views, of one crop or of two, and takes local ones; no negatives, no queue, no second network. Correlations
are over the clips of all ranks, but with `train.accumulate` only over those of a part.

B clips in a batch, n of them on this rank, P size of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from unfused_fast.distributed import gather_rows
from unfused_fast.methods.method import Method, check_batch
from unfused_fast.methods.signs import CorrelationSigns


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """(B, P) both -> (P, P) correlation over the batch of each dimension of one with each of the other. Source: Eq. 2;
    the deviation has 1e-5 added to its square, as the authors' BatchNorm.
    """
    one, other = (batch_norm(rows, None, None, training=True) for rows in (first, second))
    return (one / len(first)).T @ other


def barlow_loss(correlations: Tensor, off_diagonal: float) -> Tensor:
    """(P, P) -> () sum of (1 - C_ii)^2, plus `off_diagonal`, lambda, times the sum of other C_ij^2. Source: Eq. 1."""
    diagonal = correlations.diagonal()
    redundancy = correlations.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * redundancy


class Barlow(Method):
    """Redundancy reduction."""

    title, views = "Barlow Twins", 2

    def set_up(self, clips: int) -> None:
        check_batch(self.config, clips, "correlates outputs over a batch")
        self.signs = CorrelationSigns(self.ranks)

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """Of the first view with each other one; the mean over these. Projections of all ranks' clips are gathered with
        their gradient. Source of local views: authors of Audio Barlow Twins.
        """
        with self.part("forward"):
            first, *others = (gather_rows(self.run(view), self.ranks) for view in views)
        losses, settings = list[Tensor](), self.config.method
        for other in others:
            correlations = cross_correlation(first, other)
            self.signs.note_correlations(correlations)
            losses.append(settings.barlow_weight * barlow_loss(correlations, settings.barlow_lambda))
        return torch.stack(losses).mean()
