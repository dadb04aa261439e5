"""DeLoRes-M is MoCo plus terms of Barlow Twins, whose gradient reaches what it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_kinds import small
from torch import Tensor

from unfused_fast.config import MethodName, preset
from unfused_fast.methods.barlow import barlow_loss, cross_correlation
from unfused_fast.models import block_features

CLIPS = torch.arange(16)


def made(name: MethodName, **values: Any) -> Any:
    return small(name, **{"method.queue": 20, **values})


def views(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(16, 1, 64, 32, generator=generator) for _ in range(2))
    return first, second


def step(method: Any, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    torch.manual_seed(seed)  # dropout
    loss: Tensor = method.loss(views(seed), CLIPS)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    method.after_step(CLIPS)
    return loss.detach()


def test_without_its_terms_it_is_moco() -> None:
    """Losses, weights, key encoder and queue, bit for bit, over steps."""
    moco, delores = made("moco"), made("delores-m", **{"method.barlow_weight": 0})
    found = delores.load_state_dict(moco.state_dict(), strict=False)
    assert not found.unexpected_keys and all(name.startswith(("network.heads", "corr")) for name in found.missing_keys)
    optimizers = [torch.optim.SGD(method.network.parameters(), 0.1) for method in (moco, delores)]
    for seed in range(3):
        assert torch.equal(*(step(*pair, seed) for pair in zip((moco, delores), optimizers, strict=True)))
    state = delores.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in moco.state_dict().items())
    assert torch.equal(*(method.queue.keys for method in (moco, delores)))


def test_each_block_of_the_query_is_decorrelated_against_the_keys() -> None:
    """The terms from the encoders' blocks and the heads, step by step; the key encoder gets no gradient."""
    moco, method = made("moco"), made("delores-m", **{"method.barlow_weight": 0.5, "method.barlow_lambda": 0.1})
    moco.load_state_dict(method.state_dict(), strict=False)
    torch.manual_seed(5)  # dropout
    found = method.loss(views(), CLIPS)
    torch.manual_seed(5)
    wanted, terms = moco.loss(views(), CLIPS), list[Tensor]()
    blocks = [
        [block_features(block) for block in network.encoder(view).blocks]
        for network, view in zip((method.network, method.key_network), views(), strict=True)
    ]
    sizes = [32 * 4, 16 * 4, 8 * 4]
    for size, head, query, key in zip(sizes, method.network.heads, *blocks, strict=True):
        assert query.shape == (16, size) and [layer.out_features for layer in head[::3]] == [24, 24, 24]
        terms.append(0.5 * barlow_loss(cross_correlation(head(query), head(key)), 0.1))
    total = torch.stack(terms).sum()
    torch.testing.assert_close(found, wanted + total, rtol=1e-5, atol=1e-5)
    first, same = (of.network.encoder.convolutions[0][0].weight for of in (method, moco))
    gradients = [torch.autograd.grad(loss, of)[0] for loss, of in ((wanted, same), (total, first))]
    found.backward()
    torch.testing.assert_close(first.grad, gradients[0] + gradients[1], rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in method.key_network.parameters())
    assert all(bool(parameter.grad.any()) for parameter in method.network.heads.parameters() if parameter.ndim > 1)
    log = (method.after_step(CLIPS), method.end_epoch())[1]
    assert {"alignment", "uniformity", "diagonal", "off_diagonal"} == set(log)


@pytest.mark.parametrize("name", ["delores-s", "delores-m"])
def test_the_authors_lambda_weights_the_diagonal_too(name: MethodName) -> None:
    """5e-5 of the whole loss of a lambda of 1, over 32: their code, worked out for one correlation matrix."""
    settings = preset("authors", "pretrain", name).method
    correlations = torch.tensor([[0.5, 0.2], [-0.1, 1.0]])
    found = settings.barlow_weight * barlow_loss(correlations, settings.barlow_lambda)
    assert found.item() == pytest.approx((5e-5 * 0.25 + 5e-5 * (0.04 + 0.01)) / 32)
