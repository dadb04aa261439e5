"""BatchNorm, dropout and gradients over the global batch of all ranks: a step on any number of ranks equals the step on
one.   n rows on this rank, N on all ranks, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unfused_fast.distributed.ranks import Ranks

Module = TypeVar("Module", bound=nn.Module)


class _Sum(torch.autograd.Function):
    """Sum over ranks; its gradient is summed too."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks.sum(tensor.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return context.ranks.sum(gradients[0].clone()), None


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient of a rank's rows is summed over what all ranks made of them."""

    @staticmethod
    def forward(context: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        _, first = ranks.rows
        context.ranks, context.own = ranks, slice(first, first + len(rows))
        return ranks.gather_parts(rows, ranks.sizes)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        # a matrix's gradient may lie transposed, which NCCL refuses
        every = gradients[0].clone(memory_format=torch.contiguous_format)
        return context.ranks.sum(every)[context.own], None


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """(n, ...) of each rank's part of the current batch -> (N, ...) of all, in order of ranks; with gradient.

    Gradients are those of the sum of the ranks' losses: where each rank's loss is its share of the batch's mean, as
    training/loop.py scales it, a step on several ranks is the step on one.
    """
    if not ranks.together:
        return rows
    gathered: Tensor = _Gather.apply(rows, ranks)  # type: ignore[no-untyped-call]
    return gathered


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all ranks where torch's SyncBatchNorm does not run, on CPUs. Its tensors have the
    names and shapes of nn.BatchNorm1d and 2d. Ours: sums over ranks are taken of means and mean squares, in float64.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.ranks = ranks
        self.load_state_dict(norm.state_dict())

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a batch of shape {tuple(input.shape)}; want (n, C, ...)")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """(n, C, ...) -> the same; n may be 0 on some ranks, not on all."""
        if not self.training:
            return super().forward(input)
        axes, shape = [0, *range(2, input.dim())], [1, -1] + [1] * (input.dim() - 2)
        if count := input[:, 0].numel():
            variance, mean = (found.double() for found in torch.var_mean(input.float(), axes, correction=0))
            own = count * torch.stack([mean, variance + mean.square(), torch.ones_like(mean)])
        else:
            own = input.sum() * torch.zeros(3, self.num_features, dtype=torch.float64)  # has a gradient, as elsewhere
        first, second, total = _Sum.apply(own, self.ranks)  # type: ignore[no-untyped-call]
        mean = first / total
        variance = second / total - mean.square()
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * total / (total - 1).clamp(min=1)).float(), self.momentum)
        scale = self.weight.double() * torch.rsqrt(variance + self.eps)
        shift = self.bias.double() - mean * scale
        return torch.addcmul(shift.float().view(shape), input, scale.float().view(shape)).to(input.dtype)


class SharedDropout(nn.Dropout):
    """Dropout with a mask for the global batch, of which a rank takes its rows: all ranks draw the same amount, and on
    a CPU the same mask as a single process.
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
    """Replaces dropout, and with `sync_bn` BatchNorm, by layers over the global batch, with several ranks."""
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
    normed = shared.forward

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(input: Tensor) -> Any:  # its collective operations are not part of a graph
        # of no rows it sends statistics in the type of the input, of others in float32
        return normed(input if len(input) else input.float())

    shared.forward = forward
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


def sum_gradients(parameters: Iterable[Tensor], loss: Tensor, ranks: Ranks, dtype: Literal["fp32", "bf16"]) -> Tensor:
    """Sums gradients over ranks, in place, and returns the sum of the losses (); each rank's loss is its share of the
    batch's mean.

    Ours: one message for all parameters, sent when the backward pass is done; `bf16` halves it, and rounds each
    gradient to 8 bits. For the paper's network it has 42 MB. Between 8 A100, whose NVLink carries 300 GB/s each way, it
    takes 0.25 ms at best (2 x 7/8 of it pass each link); a step of 64 clips on each takes 0.8 ms at best, of 512 clips
    6.3 ms, at the 81,000 clips/s that memory traffic allows. Computed, not measured. DistributedDataParallel would send
    while the backward pass goes on, and fits two forward passes in a step, no_sync, and sums in place of means. Not
    used, because:

    - It regroups its messages after the first step of a process, and with them the order of additions: on four ranks a
      third of the gradients' numbers then had other bits (gloo). A resumed run would differ from the uninterrupted one.
    - Projector and fully connected layers, 99 % of the bytes, come first in the backward pass. On GPUs the sums of
      SyncBatchNorm, which the rest of that pass waits for, would queue behind them in the same communicator; NCCL's
      guide rules out two communicators at once without locks (Using multiple NCCL communicators concurrently).
    - It wants every parameter when it is made; prediction heads are made anew at each clustering.
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
