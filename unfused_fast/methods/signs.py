"""Early signs of a collapse: numbers of each step, whose means over an epoch are logged.

B clips in a batch, P size of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unfused_fast.distributed import Ranks


class Signs(nn.Module):
    """Means over the steps of an epoch, each number itself a sum over the clips of all ranks. Part of a checkpoint, so
    that a run resumed within an epoch logs the same numbers; nothing waits for the device before `means`.
    """

    sums: Tensor
    steps: Tensor

    def __init__(self, ranks: Ranks, *names: str) -> None:
        super().__init__()
        self.ranks, self.names = ranks, names
        self.register_buffer("sums", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._step = list[Tensor]()

    def note(self, *shares: Tensor) -> None:
        """One number () a name, of the clips of a part of this rank's batch: its share of that of the whole batch."""
        self._step.append(torch.stack(shares).detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """The step's numbers, summed over its parts and over ranks, count."""
        self.sums += self.ranks.sum(torch.stack(self._step).sum(dim=0).double())
        self.steps += 1
        self._step = []

    def begin_epoch(self) -> None:
        """Forgets the epoch before."""
        self.sums.zero_()
        self.steps.zero_()

    def means(self) -> dict[str, float]:
        """Name -> mean over the steps since `begin_epoch`."""
        return {
            name: round(value, 4)
            for name, value in zip(self.names, (self.sums / self.steps.clamp(min=1)).tolist(), strict=True)
        }
