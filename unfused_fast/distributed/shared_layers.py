"""Layers that treat a batch spread over ranks as one: BatchNorm and dropout.

n rows on this rank, N on all ranks, C channels. Together with gradients summed over ranks they make a step on any
number of ranks the step of one.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from unfused_fast.distributed.ranks import Ranks

Module = TypeVar("Module", bound=nn.Module)


class _Normalise(torch.autograd.Function):
    """(n, C, ...) by mean and biased variance over all ranks."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, ranks: Ranks
    ) -> Tensor:
        context.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        context.ranks, context.count = ranks, ranks.rows[0] * (x[0, 0].numel() if len(x) else _spread(x))
        return batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        """Gradients of weight and bias are this rank's share, as those of other layers."""
        x, weight, mean, scale = context.saved_tensors
        shape, axes = _shape(x), _axes(x)
        gradient = gradients[0].float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        over_bias, over_weight = (context.ranks.sum(own.clone()) / context.count).view(2, *shape)
        back = (gradient - over_bias - normal * over_weight) * (scale * weight).view(shape)
        return back.to(x.dtype), own[1], own[0], None, None, None, None


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all ranks where torch's SyncBatchNorm does not run, on CPUs. Its tensors have the
    names and shapes of nn.BatchNorm1d and 2d. Ours: sums over ranks are taken of means and variances, in float64.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.ranks = ranks
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a batch of shape {tuple(input.shape)}; want (n, C, ...)")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(n, C, ...) -> the same; n may be 0 on some ranks, not on all."""
        if not self.training:
            return super().forward(input)
        with torch.no_grad():
            mean, variance, count = self._statistics(input)
            assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        normalised = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, variance, self.eps, self.ranks
        )
        return cast(Tensor, normalised)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean and biased variance (C,) over all ranks, and of how many values."""
        own = torch.zeros(2, self.num_features, device=x.device, dtype=torch.float64)
        if len(x):
            variance, mean = torch.var_mean(x.float(), _axes(x), correction=0)
            own[0], own[1] = mean, variance
        means, variances = self.ranks.gather(own).unbind(1)
        total, _ = self.ranks.rows
        weights = torch.tensor(self.ranks.sizes, device=x.device, dtype=torch.float64)[:, None] / total
        mean = (weights * means).sum(0)
        variance = (weights * (variances + (means - mean).square())).sum(0)
        return mean.float(), variance.float(), total * _spread(x)


class SharedDropout(nn.Dropout):
    """Dropout whose draws are those of the whole batch, of which a rank takes its rows: so all ranks draw as much, and
    on a CPU the same as a process that works alone.
    """

    def __init__(self, dropout: nn.Dropout, ranks: Ranks) -> None:
        super().__init__(dropout.p)
        self.ranks = ranks

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(n, ...) -> the same."""
        if not self.training or not self.p:
            return input
        total, first = self.ranks.rows
        noise = torch.empty(total, *input.shape[1:], dtype=input.dtype, device=input.device)
        kept = noise.bernoulli_(1 - self.p)[first : first + len(input)]
        return input * kept.div_(1 - self.p)


def share_layers(network: Module, ranks: Ranks, sync_bn: bool) -> Module:
    """Replaces dropout, and with `sync_bn` BatchNorm, by what treats the batch of all ranks as one, where there are
    several.
    """
    if not ranks.together:
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, SharedDropout(child, ranks))
            elif sync_bn and isinstance(child, _BatchNorm):
                setattr(parent, name, _shared_norm(child, ranks))
    return network


def _shared_norm(norm: _BatchNorm, ranks: Ranks) -> nn.Module:
    if ranks.device.type != "cuda":
        return SharedBatchNorm(norm, ranks)
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(norm, ranks.group)  # type: ignore[no-untyped-call]
    # its exchanges are no part of a graph
    shared.forward = torch.compiler.disable(shared.forward)  # type: ignore[no-untyped-call]
    return cast(nn.Module, shared)


def first_state(network: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the weights and running statistics of rank 0."""
    for tensor in network.state_dict().values():
        ranks.from_first(tensor)


def first_buffers(network: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the running statistics of rank 0, where each normalises its own share of a batch."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not ranks.together or not buffers:
        return
    flat = ranks.from_first(torch.cat([buffer.reshape(-1) for buffer in buffers]))
    pieces = torch.split(flat, [buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [piece.view(buffer.shape) for piece, buffer in zip(pieces, buffers, strict=True)])


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _shape(x: Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)


def _spread(x: Tensor) -> int:
    """Values of a row in each channel."""
    return x.shape[2:].numel()
