"""Sum of the gradients of all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from unfused_fast.distributed.ranks import Ranks


def sum_gradients(parameters: Iterable[Tensor], loss: Tensor, ranks: Ranks, dtype: Literal["fp32", "bf16"]) -> Tensor:
    """Sums gradients over ranks, in place, and returns the sum of the losses (); each rank's loss is its share of the
    batch's mean.

    Ours: one message for all parameters, sent when the backward pass is done. The paper's network has 10 million, which
    take a millisecond between the GPUs of a machine; DDP's overlap would hide a part of it, and its buckets would be
    rebuilt for each new prediction head. `bf16` halves the message, and rounds each gradient to 8 bits.
    """
    if not ranks.together:
        return loss
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = [gradient.reshape(-1) for gradient in found]
    if dtype == "fp32":
        flat = ranks.sum(torch.cat([*rows, loss.reshape(1)]))
        flat, loss = flat[:-1], flat[-1]
    else:
        flat = ranks.sum(torch.cat(rows).to(torch.bfloat16)).float()
        loss = ranks.sum(loss.clone())
    pieces = torch.split(flat, [gradient.numel() for gradient in found])
    torch._foreach_copy_(found, [piece.view(one.shape) for piece, one in zip(pieces, found, strict=True)])
    return loss
