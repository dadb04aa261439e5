"""The layers and collective operations that ranks share, beside those of one process."""

from __future__ import annotations

import copy

import torch
from torch import nn

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.distributed.ranks import FailedOnFirst, Ranks
from unfused_fast.distributed.shared_layers import gather_rows, share_layers, sum_gradients
from unfused_fast.methods.decar_v2 import DecarV2


def check_layers(ranks: Ranks) -> None:
    """Layers on shares of a batch, of different sizes and empty ones, against torch's on the whole, in float64."""
    for clips in (7, 2, 64):
        for shape in ((5,), (3, 4, 6)):
            _check_batch(ranks, clips, shape)
    assert ranks.texts(f"rank {ranks.rank}") == ["rank 0", "rank 1", "rank 2"]
    assert ranks.any_rank(ranks.rank == 1, False) == (True, False)
    assert ranks.first(lambda: {"of": ranks.rank}) == {"of": 0}
    try:
        ranks.first(lambda: 1 / 0)
    except (ZeroDivisionError, FailedOnFirst) as error:
        assert isinstance(error, FailedOnFirst) == (ranks.rank > 0) and "division by zero" in str(error)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, dtype=torch.int64)}
    found = ranks.tensors_from_first(tensors if ranks.leads else None)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors) and len(found) == 2
    _check_follower(ranks)
    ranks.barrier()


def _check_follower(ranks: Ranks) -> None:
    """Rows of the bank are computed with the same running statistics on every rank, also without shared BatchNorm."""
    values = {"bank.encoder": "follower", "bank.fill": "pass", "model.sync_bn": False, "cluster.k": 2}
    method = DecarV2(with_values(Config(), values), 12, 0, ranks.device, ranks)
    assert method.follower is not None
    method.heads = nn.ModuleList()  # made by a clustering
    buffers = [buffer.fill_(ranks.rank) for buffer in method.follower.buffers() if buffer.is_floating_point()]
    method.after_step(torch.arange(0))
    assert buffers and not any(map(torch.any, buffers))


def _check_batch(ranks: Ranks, clips: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(clips)
    whole = torch.randn(clips, *shape, dtype=torch.float64) * 3 + 1
    weighting = torch.randn(clips, *shape, dtype=torch.float64)
    ranks.batch(ranks.share.sizes(clips))
    rows = ranks.share.of(clips)
    plain = nn.BatchNorm1d(shape[0]) if len(shape) == 1 else nn.BatchNorm2d(shape[0])
    nn.init.uniform_(plain.weight), nn.init.uniform_(plain.bias)
    shared = share_layers(nn.Sequential(copy.deepcopy(plain)), ranks, sync_bn=True)
    exact = copy.deepcopy(plain).double()
    x = whole.clone().requires_grad_()
    (exact(x) * weighting).sum().backward()
    own = whole[rows].float().requires_grad_()
    normal = shared(own)
    loss = (normal * weighting[rows].float()).sum()
    loss.backward()
    total = sum_gradients(shared.parameters(), loss.detach(), ranks, "fp32")
    close = torch.testing.assert_close
    close(normal.detach().double(), exact(whole)[rows].detach(), rtol=0, atol=2e-5)
    close(own.grad.double(), x.grad[rows], rtol=0, atol=2e-4)  # type: ignore[union-attr, index]
    close(total.double(), (copy.deepcopy(plain).double()(whole) * weighting).sum().detach(), rtol=1e-4, atol=1e-3)
    for name in ("weight", "bias"):
        close(getattr(shared[0], name).grad.double(), getattr(exact, name).grad, rtol=1e-4, atol=1e-4)
    running = copy.deepcopy(plain).double()
    running(whole)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        close(getattr(shared[0], name).double(), getattr(running, name).double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(ranks.gather_parts(whole[rows].float(), ranks.sizes), whole.float())
    _check_gather(ranks, whole)
    dropout = share_layers(nn.Sequential(nn.Dropout(0.4)), ranks, sync_bn=True)
    torch.manual_seed(3)
    dropped = dropout(whole[rows].float())
    torch.manual_seed(3)
    assert torch.equal(dropped, nn.functional.dropout(whole.float(), 0.4)[rows])


def _check_gather(ranks: Ranks, whole: torch.Tensor) -> None:
    """Each rank's loss is about all rows, from its own rows: the gradient of their sum is that of one process."""
    x, rows = whole.flatten(1).clone().requires_grad_(), ranks.share.of(len(whole))
    (x @ x.T).square().mean().backward()
    own = x[rows].detach().clone().requires_grad_()
    every = gather_rows(own, ranks)
    assert torch.equal(every, x)
    ((own @ every.T).square().sum() / len(whole) ** 2).backward()
    torch.testing.assert_close(own.grad, x.grad[rows])  # type: ignore[index]
