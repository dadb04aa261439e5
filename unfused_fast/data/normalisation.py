"""Normalisation by what was seen so far, `data.norm` = running.   B clips in a batch, F mel bins, T frames."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.strict_state import expected

LEAST_STD = 1e-6
"""Below it a standard deviation is taken for this. Ours: crops of silence alone have none."""
TENSOR = "norm.moments"
"""Name in a checkpoint."""
GIVEN = "norm.given"
"""Name in a checkpoint of the mean and standard deviation (2,) that a run took over from its encoder's run."""


class RunningNorm:
    """Mean and standard deviation over all bins and frames of the crops trained on so far, as two scalars.

    Source: authors (RunningNorm over each clip's bins and frames). Theirs counts clip by clip in each worker of the
    loader, and begins anew with the worker. Ours is deterministic: one state for the run, on the device; a batch is
    added whole and in the order of (seed, epoch), and is then normalised by what was seen up to and including it. The
    state is part of a checkpoint, so that a resumed run goes on exactly. Sums are float64: after 250,000 clips a new
    one still counts in full. What it gets is normalised by the set's statistics already, which changes nothing of the
    result and keeps masks, whose zeros are the set's mean, where they belong.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        """What is seen is what all `ranks` see."""
        self._ranks = ranks
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)
        """Values seen, their sum, the sum of their squares."""

    def __call__(self, crops: tuple[Tensor, ...], learn: bool = True) -> tuple[Tensor, ...]:
        """V crops (B, 1, F, T) -> the same normalised. The first is counted: it is what both views are made of.

        Args:
            learn: count them before; where nothing was counted yet, crops stay as they are.
        """
        if learn:
            values = crops[0].double()
            count = torch.full((), values.numel(), dtype=torch.float64, device=values.device)
            self.moments = self.moments + self._ranks.sum(torch.stack([count, values.sum(), values.square().sum()]))
        mean, std = mean_and_std(self.moments)
        return tuple((crop - mean.float()) / std.float() for crop in crops)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {TENSOR: self.moments}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of state. Raises UserError: it is not there."""
        self.moments = expected(state, TENSOR, torch.float64, (3,)).to(self.moments.device)


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) values seen, sum, sum of squares -> () mean and () standard deviation; 0 and 1 of none. No host sync."""
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    return mean, torch.where(count > 0, std, 1.0)


def final_statistics(known: Mapping[str, float] | None, tensors: Mapping[str, Tensor]) -> dict[str, float] | None:
    """Mean and standard deviation of plain log-mels that a run ended with: the set's, `known`, and the running ones on
    top of them, where its checkpoint has any; or those that it was given.
    """
    if GIVEN in tensors:
        mean, std = expected(tensors, GIVEN, torch.float64, (2,)).tolist()
        return {"mean": mean, "std": std}
    if known is None and TENSOR not in tensors:
        return None
    first = known or {"mean": 0.0, "std": 1.0}
    if TENSOR not in tensors:
        return dict(first)
    mean, std = (float(value) for value in mean_and_std(tensors[TENSOR]))
    return {**first, "mean": first["mean"] + first["std"] * mean, "std": first["std"] * std}
