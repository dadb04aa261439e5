"""The losses of an epoch, summed on the device, and the stop when they are no numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unfused_fast.config import Config
from unfused_fast.errors import UserError

READ_EVERY = 100
"""Steps after which it is read whether a loss was not finite: the host waits for its device then. Ours: the first such
loss breaks the weights, so to go on is of no use."""


class Losses:
    """Sum of the losses of an epoch's steps, and how many were not finite; on the device."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.odd = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: Tensor) -> None:
        """One step; no host sync."""
        self.total = self.total + loss
        self.odd = self.odd + (~loss.isfinite()).long()

    def mean(self, steps: int) -> float:
        """Mean over the steps."""
        return float(self.total) / steps

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint within an epoch needs; one is only made while all losses are finite."""
        return {"losses.total": self.total}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of tensors."""
        self.total = tensors["losses.total"].to(self.total.device)

    def fault(self) -> str | None:
        """Why to stop, by the losses alone."""
        return f"the loss became {float(self.total)}" if int(self.odd) else None


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
        fault = "the network's weights are not finite"
    raise not_finite(fault, epoch, kept(), config)


def not_finite(fault: str, epoch: int, kept: str, config: Config) -> UserError:
    """The error that says what to try."""
    return UserError(
        f"epoch {epoch}: {fault}; {kept}. Most often the learning rate is too high (optim.lr = {config.optim.lr:g}, "
        f"optim.name = {config.optim.name}): start again with --overwrite --set optim.lr={config.optim.lr / 10:g}"
        + ("" if config.train.amp == "fp32" else ", or with --set train.amp=fp32")
    )
