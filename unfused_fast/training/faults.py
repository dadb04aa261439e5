"""What ends a run, in words: losses that are not finite, and a device without enough memory; each with what to do."""

from __future__ import annotations

import torch

from unfused_fast.config import Config
from unfused_fast.errors import UserError


def not_finite(fault: str, epoch: int, saved: str, config: Config) -> UserError:
    """For `fault`, which appeared in an epoch; `saved` says what is on the disk."""
    optim = config.optim
    return UserError(
        f"epoch {epoch}: {fault}; {saved}. Most often the learning rate is too high (optim.lr = {optim.lr:g}, "
        f"optim.name = {optim.name}): start again with --overwrite --set optim.lr={optim.lr / 10:g}"
        + ("" if config.train.amp == "fp32" else ", or with --set train.amp=fp32")
    )


def out_of_memory(error: torch.OutOfMemoryError, device: torch.device, batch_size: int, config: Config) -> UserError:
    """For batches of so many clips."""
    return UserError(
        f"{device}: not enough memory for batches of {batch_size} clips ({str(error).split('. ')[0]}); start again "
        f"with --overwrite --set train.batch_size={max(2, batch_size // 2)}"
        + ("" if config.train.amp == "bf16" else ", or with --set train.amp=bf16")
    )
