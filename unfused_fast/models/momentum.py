"""A network that follows another one, and a queue of what it made.

B clips in a batch, K keys, P size of a projection.
Source: MoCo, arXiv 1911.05722, section 3.2; BYOL, arXiv 2006.07733, Eq. 1.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Network = TypeVar("Network", bound=nn.Module)


def follower(network: Network) -> Network:
    """A copy that gets no gradient. Its buffers are its own: in train mode BatchNorm sees the copy's batches, as in the
    code of MoCo and BYOL-A.
    """
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(copied: nn.Module, network: nn.Module, decay: float) -> None:
    """Each parameter of the copy becomes decay * its own + (1 - decay) * that of the same name in `network`; what the
    copy does not have is left out.
    """
    learned = dict(network.named_parameters())
    pairs = [(own, learned[name]) for name, own in copied.named_parameters()]
    torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], 1 - decay)


class KeyQueue(nn.Module):
    """The last K keys, first in, first out. Its content is part of a checkpoint; the same on all ranks where all push
    the keys of the whole batch, in its order.
    """

    keys: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """K random keys of unit norm. Source: MoCo's authors."""
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """(B, P) keys replace the oldest ones; of more than K the last K are kept. Does not wait for the device."""
        size, skipped = len(self.keys), max(0, len(keys) - len(self.keys))
        places = (self.oldest + torch.arange(skipped, len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys[skipped:].to(self.keys.dtype))
        self.oldest.copy_((self.oldest + len(keys)) % size)
