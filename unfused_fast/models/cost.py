"""Cost of an encoder: parameters, and multiply-accumulates for one crop; of a pass of a network and of a step:
operations and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from unfused_fast.config import Config
from unfused_fast.models.audiontt import PretrainNetwork, build_encoder

CROP_FRAMES = 96
"""Frames of the counted crop, 0.95 s. Ours: always the crop of the recipe, whatever crop a run was trained with."""


@dataclass(frozen=True)
class Cost:
    """Of one encoder, frozen."""

    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and linear layers for (1, 1, F, 96): 0.95 s of audio."""


def encoder_cost(config: Config, part: Literal["full", "student3"]) -> Cost:
    """Cost of the whole encoder, or of what the third block's map needs: the paper's student f_sd^s.

    A parameter counts when the features' gradient reaches it; multiply-accumulates are PyTorch's FLOP counts of the
    layers that own such a parameter, halved.
    """
    network: nn.Module = build_encoder(config)  # in train mode, where each layer runs by itself
    log_mel = torch.zeros(1, 1, config.frontend.n_mels, CROP_FRAMES)
    with FlopCounterMode(display=False) as counter:
        output = network(log_mel)
    features = output.frames if part == "full" else output.blocks[2]
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(features.sum(), [parameter for _, parameter in named], allow_unused=True)
    used = [(name, parameter) for (name, parameter), found in zip(named, gradients, strict=True) if found is not None]
    layers = {f"{type(network).__name__}.{name.rpartition('.')[0]}" for name, _ in used}
    flops = sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name in layers)
    return Cost(sum(parameter.numel() for _, parameter in used), flops // 2)


def operations(network: nn.Module, inputs: tuple[Tensor, ...], backward: bool) -> int:
    """Floating point operations of the products in a forward pass and, with `backward`, its backward pass: additions
    and multiplications, by shapes alone, on tensors without memory. Leaves the network as it is.
    """
    modes = {module: module.training for module in network.modules()}
    named = (*network.named_parameters(), *network.named_buffers())
    hollow = {name: torch.empty_like(one, device="meta").requires_grad_(one.requires_grad) for name, one in named}
    try:
        network.eval()  # without collective operations; BatchNorm and dropout have no products
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            made = functional_call(network, hollow, tuple(torch.empty_like(one, device="meta") for one in inputs))
            if trained := [leaf.sum() for leaf in tree_leaves(made) if leaf is not None and leaf.requires_grad]:
                torch.autograd.backward(trained)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops())


def step_bytes(config: Config, clips: int) -> int:
    """Most bytes that a step of so many views of clips takes beside weights, gradients and optimiser, about.

    Ours: 5/4 of what its backward pass needs in float32. The peaks of both encoders on a CPU were 1.14 to 1.18 of it in
    float32, and 0.6 to 0.95 in bf16, where half-precision copies of the weights come in.
    """
    with torch.device("meta"):
        network = PretrainNetwork(config).train()
    frames = config.trained_frames

    def loss(batch: int) -> Tensor:
        views = (torch.empty(batch, 1, config.frontend.n_mels, count, device="meta") for count in frames)
        return torch.stack([network(view).sum() for view in views]).sum()

    return clip_cost(loss)[1] * clips * 5 // (4 * len(frames))


def clip_cost(loss: Callable[[int], Tensor]) -> tuple[int, int]:
    """What one clip costs in a step: operations of the products, and float32 bytes kept for the backward pass. `loss`
    of a batch of some size is computed on tensors without memory.
    """
    (first, kept), (second, more) = (_counted(loss, batch) for batch in (2, 4))
    return (second - first) // 2, (more - kept) // 2


def _counted(loss: Callable[[int], Tensor], batch: int) -> tuple[int, int]:
    """Operations of a step of a batch, and bytes of distinct tensors kept for its backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = loss(batch)
        torch.autograd.backward(made)
    return int(counter.get_total_flops()), sum(tensor.nbytes for tensor in kept.values())
