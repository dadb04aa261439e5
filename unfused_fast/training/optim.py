"""Optimisers and the learning-rate schedule.   LARC, LARS: layer-wise adaptive rates on top of SGD with momentum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unfused_fast.config import OptimConfig


class LARC(Optimizer):
    """SGD whose gradients are scaled, layer by layer, by trust * |p| / (|g| + weight_decay * |p|).

    All norms and updates are foreach operations on the device: no host sync, no Python arithmetic per layer. Layers
    with a zero norm keep their gradient; a group with `adaptive` false is plain SGD. Source: You et al., arXiv
    1708.03888; the authors' use (trust 0.001, no clipping).
    """

    rate_in_momentum = False
    """Whether the momentum buffer sums updates (each with the rate of its own step) or gradients."""

    def __init__(
        self, parameters: Any, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adaptive": True}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            raw, decay = [p.grad for p in parameters if p.grad is not None], group["weight_decay"]
            gradients = torch._foreach_add(raw, parameters, alpha=decay)
            if group["adaptive"]:
                weight_norms, gradient_norms = (torch.stack(torch._foreach_norm(of)) for of in (parameters, raw))
                rates = group["trust"] * weight_norms / (gradient_norms + decay * weight_norms)
                rates = torch.where((weight_norms > 0) & (gradient_norms > 0), rates, torch.ones_like(rates))
                torch._foreach_mul_(gradients, list(rates.unbind()))
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers: list[Tensor] = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients, alpha=group["lr"] if self.rate_in_momentum else 1.0)
            torch._foreach_add_(parameters, buffers, alpha=-1.0 if self.rate_in_momentum else -group["lr"])


class LARS(LARC):
    """As LARC, but momentum sums updates: v = m v + lr * rate * (g + weight_decay * p), then p = p - v.

    The two differ where the rate changes: a past update keeps the rate of its step. Source: You et al., arXiv
    1708.03888, Algorithm 1.
    """

    rate_in_momentum = True


class Muon(Optimizer):
    """torch.optim.Muon for linear layers and, as matrices (outputs, the rest), convolutions; AdamW for other groups.

    An update is the momentum made orthogonal, of the size that AdamW's has, so that one `lr` fits both. Source: K.
    Jordan's Muon; arXiv 2502.16982 for the size.
    """

    def __init__(
        self, matrices: list[Tensor], others: list[dict[str, Any]], lr: float, *, momentum: float, weight_decay: float
    ) -> None:
        """`matrices` have two dimensions or more; `others` are groups of any parameters."""
        self._adamw = torch.optim.AdamW(others, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)
        super().__init__([{"params": matrices}, *self._adamw.param_groups], {"lr": lr})
        self._adamw.state = self.state
        self._matrices = [_matrix(parameter.detach(), parameter) for parameter in matrices]
        self._muon = torch.optim.Muon(self._matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        group = self.param_groups[0]
        self._muon.param_groups[0]["lr"] = group["lr"]
        for parameter, matrix in zip(group["params"], self._matrices, strict=True):
            matrix.grad = None if parameter.grad is None else _matrix(parameter.grad, parameter)
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            self._muon.state[matrix]["momentum_buffer"] = _matrix(state["momentum_buffer"], parameter)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()  # its groups are those of this optimiser, with their rates


def _matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """(O, ...) in the shape of a parameter -> (O, I), a view where memory is laid out as the parameter's. Columns are
    in the order of memory, which making a matrix orthogonal does not depend on.
    """
    channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return (tensor.movedim(1, -1) if channels_last else tensor).flatten(1)


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimiser by `optim.name`; with `exclude_1d`, biases and norms get no weight decay and no adaptive rate.

    Muon leaves to AdamW what gives class scores: the parts that a network names in `class_scores`. Source: Muon's
    author.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    matrices = list[Tensor]()
    if config.name == "muon":
        scores = getattr(network, "class_scores", ())
        matrices = [p for name, p in named if p.ndim > 1 and name.partition(".")[0] not in scores]
    own = set(matrices)
    trainable = [p for _, p in named if p not in own]
    groups: list[dict[str, Any]] = [{"params": trainable}]
    layerwise = {"larc": LARC, "lars": LARS}.get(config.name)
    if config.exclude_1d:
        plain: dict[str, Any] = {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0}
        groups = [{"params": [p for p in trainable if p.ndim > 1]}, plain | ({"adaptive": False} if layerwise else {})]
    momentum, decay = config.momentum, config.weight_decay
    if layerwise is not None:
        return layerwise(groups, config.lr, momentum=momentum, weight_decay=decay, trust=config.trust)
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=momentum, weight_decay=decay, fused=True)
    if config.name == "muon":
        return Muon(matrices, groups, config.lr, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, config.lr, betas=(momentum, 0.999), weight_decay=decay, fused=True)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Rate of a step: linear warm-up to `lr`, then half a cosine to 0; or `lr` throughout.

    Ours: the warm-up is at most a tenth of a run, so that short runs train too.
    """
    if config.schedule == "constant":
        return config.lr
    total = max(1, steps_per_epoch * epochs)
    warmup = round(min(config.warmup_epochs * steps_per_epoch, total / 10))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
