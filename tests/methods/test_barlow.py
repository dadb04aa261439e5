"""The loss of Barlow Twins, and its signs of collapse, against lightly, numpy and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly_losses import lightly_loss
from method_kinds import small
from torch import Tensor

from unfused_fast.distributed import ALONE
from unfused_fast.methods.barlow import barlow_loss, cross_correlation
from unfused_fast.methods.signs import CorrelationSigns


def rows(clips: int = 40, size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(clips, size, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("off_diagonal", [0.005, 1.0])
def test_the_loss_is_lightlys(off_diagonal: float) -> None:
    first, second = rows(), rows(seed=1)
    wanted = lightly_loss("barlow_twins_loss", "BarlowTwinsLoss")(lambda_param=off_diagonal)(first, second)
    found = barlow_loss(cross_correlation(first, second), off_diagonal)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (first, second)) for loss in (found, wanted)))


def test_correlations_are_numpys() -> None:
    first, second = rows().detach(), 3 * rows(seed=1).detach() + 1
    wanted = np.corrcoef(first.numpy().T, second.numpy().T)[:6, 6:]
    np.testing.assert_allclose(cross_correlation(first, second), wanted, atol=1e-4)


def test_the_loss_worked_out_by_hand() -> None:
    correlations = torch.tensor([[0.5, 0.2], [-0.1, 1.0]])
    assert barlow_loss(correlations, 0.1).item() == pytest.approx(0.25 + 0.1 * (0.04 + 0.01))


def test_local_views_are_each_correlated_with_the_first() -> None:
    method, views = (
        small("barlow", **{"views.local": 2, "method.barlow_weight": 2}),
        [rows(16, seed=n) for n in range(4)],
    )
    method.run = lambda view: views[int(view)]
    terms = [2 * barlow_loss(cross_correlation(views[0], other), 0.005) for other in views[1:]]
    found = method.loss(tuple(map(torch.tensor, range(4))), torch.arange(16))
    torch.testing.assert_close(found, torch.stack(terms).mean())
    assert method.views == 4


def test_the_signs_are_means_of_the_diagonal_and_beside_it() -> None:
    signs = CorrelationSigns(ALONE)
    ALONE.batch([8])
    for correlations in ([[0.5, 0.2], [-0.1, 1.0]], [[0.9, -0.8], [0.9, 0.2]]):
        signs.note_correlations(torch.tensor(correlations))
        signs.after_step()
    assert signs.log() == {"diagonal": 0.65, "off_diagonal": 0.5}
    signs.begin_epoch()
    same = torch.randn(8, 1).expand(8, 3)  # every dimension says the same
    signs.note_correlations(cross_correlation(same, same))
    signs.note_correlations(cross_correlation(torch.ones(8, 3), torch.ones(8, 3)))  # every clip gives the same
    signs.after_step()
    assert signs.log() == pytest.approx({"diagonal": 0.5, "off_diagonal": 0.5}, abs=1e-3)
