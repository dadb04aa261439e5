"""Sinkhorn's algorithm against lightly and ten lines of numpy; prototypes, queues and signs of SwAV."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightly_losses import lightly_loss
from method_kinds import small
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.distributed import ALONE
from unfused_fast.methods.signs import UsageSigns
from unfused_fast.methods.swav import sinkhorn, swapped_loss

CLIPS = torch.arange(16)


def units(rows: int, seed: int = 0, size: int = 8) -> Tensor:
    return normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference(scores: Tensor) -> np.ndarray:
    """As the paper writes it: K x B, of sum 1, rows of 1 / K, columns of 1 / B."""
    shares = np.exp(scores.double().numpy().T / 0.05)
    shares /= shares.sum()
    for _ in range(3):
        shares /= shares.sum(axis=1, keepdims=True) * shares.shape[0]
        shares /= shares.sum(axis=0, keepdims=True) * shares.shape[1]
    return shares.T * shares.shape[1]


@pytest.mark.parametrize(("clips", "k"), [(16, 5), (5, 16), (40, 40)])
def test_assignments_are_those_of_the_reference_and_of_lightly(clips: int, k: int) -> None:
    scores = units(clips) @ units(k, seed=1).T
    found = sinkhorn(scores)
    np.testing.assert_allclose(found, reference(scores), atol=1e-5)
    theirs = lightly_loss("swav_loss", "sinkhorn")(scores)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
    again = sinkhorn(torch.cat([scores, scores]) + 1)  # neither a constant nor a second copy of all changes anything
    torch.testing.assert_close(again[clips:], found, rtol=0, atol=1e-4)


def made(**values: Any) -> Any:
    method = small("swav", **{"cluster.k": 6, "method.queue": 20, **values})
    method.begin_epoch(1, lambda augmented: iter(()))
    return method


def test_local_views_predict_the_assignments_of_whole_ones() -> None:
    """As lightly's loss of low-resolution crops."""
    method, projected = made(**{"views.local": 2}), [units(16, seed) for seed in (1, 2, 3, 4)]
    assert method.views == 4
    method.run = lambda view: projected[int(view)]
    scores = [rows @ method.prototypes.detach().T for rows in projected]
    wanted = lightly_loss("swav_loss", "SwaVLoss")(temperature=0.1)(scores[:2], scores[2:])
    torch.testing.assert_close(method.loss(tuple(map(torch.tensor, range(4))), CLIPS), wanted[0])


def test_the_loss_is_lightlys_with_and_without_a_queue() -> None:
    first, second, queue = (units(12, seed) @ units(6, seed=9).T for seed in (1, 2, 3))
    first.requires_grad_(), second.requires_grad_()
    for rows in ([], [queue, queue]):
        wanted = lightly_loss("swav_loss", "SwaVLoss")(temperature=0.2)([first, second], [], rows or None)
        own, other = (sinkhorn(torch.cat([view.detach(), *rows[:1]]))[:12] for view in (first, second))
        found = (swapped_loss(first, other, 0.2) + swapped_loss(second, own, 0.2)) / 2
        torch.testing.assert_close(found, wanted[0])
        torch.testing.assert_close(*(torch.autograd.grad(loss, (first, second)) for loss in (found, wanted[0])))


def test_prototypes_wait_an_epoch_and_queues_join_in_the_second() -> None:
    method = made()
    projected = [units(16, seed).requires_grad_() for seed in (1, 2)]
    method.run = lambda view: projected[int(view)]
    views, begun = (torch.tensor(0), torch.tensor(1)), method.prototypes.detach().clone()
    for epoch in (1, 2):
        method.begin_epoch(epoch, lambda augmented: iter(()))
        queued = [queue.keys.clone() for queue in method.queues]
        loss, prototypes = method.loss(views, CLIPS), method.prototypes.detach().clone()
        loss.backward()
        scores = [rows.detach() @ prototypes.T for rows in projected]
        earlier = [[rows @ prototypes.T] if epoch == 2 else [] for rows in queued]
        own, other = (sinkhorn(torch.cat([of, *more]))[:16] for of, more in zip(scores, earlier, strict=True))
        wanted = (swapped_loss(scores[0], other, 0.1) + swapped_loss(scores[1], own, 0.1)) / 2
        torch.testing.assert_close(loss.detach(), wanted)
        method.after_step(CLIPS)
        newest = slice(16) if epoch == 1 else slice(16, 20)
        for queue, rows in zip(method.queues, projected, strict=True):
            torch.testing.assert_close(queue.keys[newest], rows.detach()[: newest.stop - (newest.start or 0)])
        assert torch.equal(method.prototypes, begun) == (epoch == 1)
        assert method.prototypes.grad is None
        torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(6))
    log = method.end_epoch()
    assert 1 < log["perplexity"] <= 6 and "prototypes in use" in method.summary({"k": 6, "ln_k": 1.79, **log})


def test_usage_is_the_exponential_of_the_entropy() -> None:
    signs = UsageSigns(ALONE, 4, "prototypes")
    for shares in ([[0.5, 0.5, 0, 0]], [[0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], [0, 0, 1, 0.0]]):
        signs.note_shares(torch.tensor(shares))
        signs.after_step()
    mean = np.array([1, 1, 1.5, 0.5]) / 4
    assert signs.log()["perplexity"] == pytest.approx(np.exp(-(mean * np.log(mean)).sum()), abs=0.01)
    signs.begin_epoch()
    signs.note_shares(torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 0]]))
    signs.after_step()
    assert signs.log()["perplexity"] == 1
