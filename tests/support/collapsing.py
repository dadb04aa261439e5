"""Networks that give every clip the same projection, whose clusters have collapsed."""

from __future__ import annotations

from torch import nn

from unfused_fast.models import audiontt as model

COLLAPSES = ["--set", "optim.lr=1e-12"]
"""Flags of a run that stays as flat as it began."""


class FlatProjector(model.Projector):
    """A projector whose last layer reads nothing: its projections are its bias."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(dim, hidden, out)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
