"""DeLoRes: redundancy reduction, alone (S), or beside contrast with a queue on each block of the encoder (M).

Source: S: Ghosh et al., arXiv 2203.13628; M: "Decorrelating Feature Spaces for Learning General-Purpose Audio
Representations", IEEE JSTSP 2022; authors of LAPE.
S is Barlow Twins with another head. M is MoCo plus three terms, each the loss of Barlow Twins between query and key, on
the time means of a convolution block's map; only the query's encoder and the heads of these terms get their gradient.
Needs two views, of one crop or of two, and takes local ones, in M as queries; M also a queue and a key encoder.
In their code lambda, 5e-5, multiplies the diagonal too, with 1/32 before it all: here `method.barlow_lambda` = 1 and
`method.barlow_weight` = 5e-5 / 32. Theirs correlates over the clips of one GPU, ours over those of all ranks, or with
`train.accumulate` over those of a part.

B clips in a batch, n of them on this rank, L convolution blocks, W size of a block's output, P size of its projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from unfused_fast.config import Config
from unfused_fast.distributed import gather_rows
from unfused_fast.methods.barlow import Barlow, barlow_loss, cross_correlation
from unfused_fast.methods.method import check_batch
from unfused_fast.methods.moco import MoCo
from unfused_fast.methods.signs import CorrelationSigns
from unfused_fast.models import PretrainNetwork, block_features, block_sizes, build_projector


class DeloresS(Barlow):
    """Redundancy reduction of one network's outputs."""

    title = "DeLoRes-S"


class BlockHeads(nn.ModuleList):
    """The heads of L blocks."""

    def forward(self, *blocks: Tensor) -> list[Tensor]:
        """L tensors (n, W) of one view after the other -> as many (n, P), each by the head of its block. All views at
        once: autocast then converts each weight once.
        """
        return [head(block) for head, block in zip(cycle(self), blocks)]


class DeloresNetwork(PretrainNetwork):
    """Encoder, projector, and a head for each block: Linear-BatchNorm-ReLU twice, then Linear, without biases, all as
    wide as `model.proj_hidden`. Source: authors (2,048, the width of their encoder; blocks of 2,048, 1,024 and 512).
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        head = replace(config.model, projector="batchnorm3", proj_dim=config.model.proj_hidden)
        self.heads = BlockHeads(build_projector(head, size) for size in block_sizes(self.encoder, config))

    def forward(self, log_mel: Tensor) -> Any:
        """(B, 1, F, T) -> projections (B, P) in float32, and L tensors (B, W) of the blocks."""
        output = self.encoder(log_mel)
        return self.project(output), [block_features(block) for block in output.blocks]


class DeloresM(MoCo):
    """Contrast with a queue, and redundancy reduction of each block."""

    title = "DeLoRes-M"

    def set_up(self, clips: int) -> None:
        super().set_up(clips)
        check_batch(self.config, clips, "correlates outputs over a batch")
        self.key_network.heads = nn.ModuleList()  # keys pass the heads of the query
        self.correlations = CorrelationSigns(self.ranks)

    @classmethod
    def build(cls, config: Config) -> nn.Module:
        return DeloresNetwork(config)

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """InfoNCE, plus the term of each block. Source: authors, who add them. Of local views, which are queries, the
        mean counts.
        """
        query_view, key_view, *local_views = views
        with self.part("forward key view"), torch.no_grad():
            keys, key_blocks = self.run(key_view, network=self.key_network)
        with self.part("forward"):
            queries, blocks = zip(*(self.run(view) for view in (query_view, *local_views)), strict=True)
            *of_queries, of_keys = self._through_heads([*blocks, key_blocks])
        loss, settings = self.contrast((queries, keys)), self.config.method
        for own in of_queries:
            for pair in zip(own, of_keys, strict=True):
                correlations = cross_correlation(*pair)
                self.correlations.note_correlations(correlations)
                term = settings.barlow_weight * barlow_loss(correlations, settings.barlow_lambda)
                loss = loss + term / len(of_queries)
        return loss

    def _through_heads(self, views: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Of each view L tensors (n, W) of this rank's clips -> of each L (B, P) of all ranks' clips, by the head of
        each block.
        """
        made = self.run(*(block for blocks in views for block in blocks), network=self.network.get_submodule("heads"))
        every, size = [gather_rows(rows.float(), self.ranks) for rows in made], len(views[0])
        return [every[begin : begin + size] for begin in range(0, len(every), size)]
