"""SimCLR: two views of a clip are more alike than either is to any view of another clip of the batch.

Source: Chen et al., arXiv 2002.05709, section 2.1 and Algorithm 1; on audio Fonseca et al., arXiv 2011.07616. With
`method.similarity` = bilinear and views of two crops it is COLA (Saeed et al., arXiv 2010.10915).
Needs two views, of one crop or of two; no bank, no queue, no second network. Large batches, whose clips are the
negatives: those of all ranks, but with `train.accumulate` only those of a part.

B clips in a batch, n of them on this rank, P size of a projection.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unfused_fast.config import Config
from unfused_fast.distributed import Ranks, gather_rows
from unfused_fast.methods.method import Method, check_batch
from unfused_fast.methods.signs import ContrastSigns


def nt_xent(projections: Tensor, temperature: float, anchors: Tensor | None = None) -> Tensor:
    """(2B, P) projections of any norm, rows i and i + B of one clip -> () mean loss of the rows `anchors` (A,), all
    unless given: cross-entropy of picking the other view among all rows but the anchor, by cosine / temperature.
    """
    rows = normalize(projections, dim=1)
    anchors = torch.arange(len(rows), device=rows.device) if anchors is None else anchors
    scores = rows[anchors] @ rows.T / temperature
    scores = scores.scatter(1, anchors[:, None], -torch.inf)  # never the anchor itself
    return cross_entropy(scores, (anchors + len(rows) // 2) % len(rows))


def batch_nt_xent(every: Tensor, others: Tensor, count: int, temperature: float, ranks: Ranks) -> Tensor:
    """(B, P) both views of all ranks' clips, of which this rank has `count` -> () NT-Xent of these, its anchors."""
    own = torch.arange(ranks.rows[1], ranks.rows[1] + count, device=every.device)
    return nt_xent(torch.cat([every, others]), temperature, torch.cat([own, own + len(every)]))


def bilinear_loss(anchors: Tensor, mapped: Tensor, first: int = 0) -> Tensor:
    """(n, P) anchors, (B, P) W x of the other views of all clips -> () mean cross-entropy of picking a clip's own, by
    x' W x. `first` is the clip of the first anchor. Source: COLA section 3 and its authors, who have no temperature.
    """
    return cross_entropy(anchors @ mapped.T, torch.arange(first, first + len(anchors), device=anchors.device))


class SimCLR(Method):
    """Contrast within the batch."""

    title, views = "SimCLR", 2

    def set_up(self, clips: int) -> None:
        check_batch(self.config, clips, "tells a clip from the others of its batch")
        self.signs = ContrastSigns(self.ranks)

    @classmethod
    def build(cls, config: Config) -> nn.Module:
        """With `method.similarity` = bilinear its matrix W is part of the network."""
        network = super().build(config)
        if config.method.similarity == "bilinear":
            network.add_module("similarity", nn.Linear(config.model.proj_dim, config.model.proj_dim, bias=False))
        return network

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """Projections of all ranks' clips are gathered with their gradient; each rank's anchors are its own."""
        with self.part("forward"):
            first, second = (self.run(view) for view in views)
        every, others = (gather_rows(projections, self.ranks) for projections in (first, second))
        self.signs.note_views(first, second, every)
        if self.config.method.similarity == "bilinear":
            return bilinear_loss(first, self.network.get_submodule("similarity")(others), self.ranks.rows[1])
        return batch_nt_xent(every, others, len(first), self.config.loss.temperature, self.ranks)

    def description(self) -> str:
        return self.title if self.config.method.similarity == "cosine" else f"{self.title} with bilinear similarity"

    def facts(self) -> dict[str, Any]:
        return {"similarity": self.config.method.similarity}
