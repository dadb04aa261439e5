"""The losses of an epoch, summed on the device, and the stop when they are no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unfused_fast.config import Config
from unfused_fast.errors import UserError

PATIENCE = 3
"""Steps in a row whose loss is not finite that end a run. Ours: one bad batch may pass, as long as the weights stay
finite."""
READ_EVERY = 100
"""Steps after which the count of such steps is read: the host waits for its device then."""


class Losses:
    """Sum of the finite losses of an epoch's steps, and how many steps had none; on the device."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.last = torch.zeros((), device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)
        """Steps without a finite loss: in all, in a row up to now, and the longest such row."""

    def add(self, loss: Tensor) -> None:
        """One step; no host sync."""
        finite = loss.isfinite()
        self.total += torch.where(finite, loss, 0.0)
        self.last = loss
        odd = (~finite).long()
        row = (self.counts[1] + 1) * odd
        self.counts = torch.stack([self.counts[0] + odd, row, torch.maximum(self.counts[2], row)])

    def mean(self, steps: int) -> float:
        """Mean over the steps that had a finite loss; NaN where none had."""
        counted = steps - int(self.counts[0])
        return float(self.total) / counted if counted else math.nan

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint within an epoch needs."""
        return {"losses.total": self.total, "losses.counts": self.counts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of tensors."""
        self.total = tensors["losses.total"].to(self.total.device)
        self.counts = tensors["losses.counts"].to(self.counts.device)

    def fault(self) -> str | None:
        """Why to stop, by the losses alone: PATIENCE steps in a row without a finite one."""
        longest = int(self.counts[2])
        if longest < PATIENCE:
            return None
        return f"the loss became {float(self.last)}" if int(self.counts[1]) else f"{longest} losses were not finite"


def check_finite(losses: Losses, network: nn.Module, epoch: int, kept: Callable[[], str], config: Config) -> None:
    """Raises UserError with a diagnosis when the losses, or what they left in the network, are no numbers.

    Ours: the network too, because a step that breaks it may show in no loss yet, and such a checkpoint is of no use.

    Args:
        kept: says what of the run is saved.
    """
    fault = losses.fault()
    if fault is None:
        values = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        if bool(torch.stack([value.isfinite().all() for value in values]).all()):
            return
        broken = int(losses.counts[1])
        fault = f"the loss became {float(losses.last)}" if broken else "the network's weights are not finite"
    raise not_finite(fault, epoch, kept(), config)


def not_finite(fault: str, epoch: int, kept: str, config: Config) -> UserError:
    """The error that says what to try."""
    return UserError(
        f"epoch {epoch}: {fault}; {kept}. Most often the learning rate is too high (optim.lr = {config.optim.lr:g}, "
        f"optim.name = {config.optim.name}): start again with --overwrite --set optim.lr={config.optim.lr / 10:g}"
        + ("" if config.train.amp == "fp32" else ", or with --set train.amp=fp32")
    )
