"""An instance term beside clustering: a clip's two views agree, on the projections that are clustered.

`simclr` tells a clip from the others of its batch, `barlow` decorrelates the dimensions. Source: PCL (Li et al., arXiv
2005.04966) adds InfoNCE to prototypes on the same projections; the terms are those of simclr.py and barlow.py. Ours:
beside the prototypes of DECAR-v2, and `barlow` on the same projections too, which have unit norm, where its authors
have a wider head of its own without (normalised outputs cost them 1.6 points, arXiv 2103.03230, Table 2). A second head
would cost as much as the first; and a bank's rows lose most of their directions within epochs (docs/recipe.md), which
only a term on those rows can keep apart.
Terms are over the clips of all ranks, but with `train.accumulate` over those of a part.

B clips in a batch, n of them on this rank, P size of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.distributed import Ranks, gather_rows
from unfused_fast.methods.barlow import barlow_loss, cross_correlation
from unfused_fast.methods.method import Log, Signs, check_batch
from unfused_fast.methods.signs import ContrastSigns, CorrelationSigns, MeanSigns
from unfused_fast.methods.simclr import batch_nt_xent


class InstanceTerm(Signs):
    """The term `loss.instance`, its mean over an epoch, and its signs of collapse."""

    signs: ContrastSigns | CorrelationSigns

    def __init__(self, config: Config, clips: int, ranks: Ranks) -> None:
        """Raises UserError for batches of too few of the `clips` clips to compare."""
        super().__init__()
        self.config, self.ranks = config, ranks
        check_batch(config, clips, f"with loss.instance = {config.loss.instance} compares the clips of a batch")
        self.signs = (ContrastSigns if config.loss.instance == "simclr" else CorrelationSigns)(ranks)
        self.means = MeanSigns(ranks, "instance_loss")

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(n, P) projections of both views of this rank's clips -> () the term: NT-Xent at `loss.instance_temperature`;
        or the loss of Barlow Twins divided by P, so that either begins at the size of a cross-entropy or below.
        """
        loss = self._compared(first, second)
        # of no clips it may be NaN
        self.means.note(loss * len(first) / self.ranks.rows[0] if len(first) else torch.zeros_like(loss))
        return loss

    def _compared(self, first: Tensor, second: Tensor) -> Tensor:
        every, others = (gather_rows(rows, self.ranks) for rows in (first, second))
        if isinstance(self.signs, ContrastSigns):
            self.signs.note_views(first, second, every)
            return batch_nt_xent(every, others, len(first), self.config.loss.instance_temperature, self.ranks)
        correlations = cross_correlation(every, others)
        self.signs.note_correlations(correlations)
        return barlow_loss(correlations, self.config.method.barlow_lambda) / len(correlations)

    def begin_epoch(self) -> None:
        self.signs.begin_epoch()
        self.means.begin_epoch()

    def after_step(self) -> None:
        self.signs.after_step()
        self.means.after_step()

    def log(self) -> Log:
        """For the epoch's log: the mean term, without its weight, and the signs."""
        return {**{name: round(value, 6) for name, value in self.means.means().items()}, **self.signs.log()}

    def summary(self, log: Log) -> str:
        return f"  of which {self.config.loss.instance} {log['instance_loss']:.3f}{self.signs.summary(log)}"
