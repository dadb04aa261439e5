"""Losses that compare views, and early signs of collapse, against lightly, numpy and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly_losses import lightly_loss
from torch import Tensor
from torch.nn.functional import normalize

from unfused_fast.distributed import ALONE
from unfused_fast.methods.byol import byol_loss
from unfused_fast.methods.moco import info_nce
from unfused_fast.methods.signs import ContrastSigns
from unfused_fast.methods.simclr import bilinear_loss, nt_xent

E1, E2 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def rows(clips: int = 9, size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(clips, size, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive_losses_are_lightlys(temperature: float) -> None:
    first, second, queue = rows(), rows(seed=1), normalize(rows(12, seed=2).detach(), dim=1)
    wanted = lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=temperature)(first, second)
    found = nt_xent(torch.cat([first, second]), temperature)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (first, second)) for loss in (found, wanted)))
    theirs = lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=temperature, memory_bank_size=queue.shape)
    theirs.memory_bank.bank = queue.clone()
    found = info_nce(normalize(first, dim=1), normalize(second, dim=1), queue, temperature)
    torch.testing.assert_close(found, theirs(first, second))


def test_byols_loss_is_lightlys() -> None:
    first, second = rows(), rows(seed=1)
    theirs = lightly_loss("negative_cosine_similarity", "NegativeCosineSimilarity")()
    torch.testing.assert_close(byol_loss(first, second), 2 + 2 * theirs(first, second))


def test_losses_worked_out_by_hand() -> None:
    def close(found: Tensor, wanted: float) -> None:
        assert found.item() == pytest.approx(wanted, rel=1e-5)

    views = torch.stack([E1, E2, 2 * E1, 3 * E2])  # two clips, each twice; norms do not matter
    close(nt_xent(views, 1.0), math.log(math.e + 2) - 1)
    close(nt_xent(views, 0.5), math.log(math.e**2 + 2) - 2)
    close(info_nce(E1[None], E1[None], torch.stack([E2, -E1]), 1.0), math.log(math.e + 1 + 1 / math.e) - 1)
    close(byol_loss(torch.stack([E1, E1, E1]), torch.stack([5 * E1, E2, -E1])), (0 + 2 + 4) / 3)
    close(bilinear_loss(torch.stack([E1, E2]), torch.stack([2 * E1, 2 * E2])), math.log(math.e**2 + 1) - 2)


def test_the_anchors_of_parts_add_up_to_the_whole() -> None:
    """As ranks share them: five clips and four."""
    views, mapped = rows(18), rows(seed=3)
    parts = [nt_xent(views, 0.3, torch.cat([part, part + 9])) for part in torch.arange(9).split(5)]
    torch.testing.assert_close((5 * parts[0] + 4 * parts[1]) / 9, nt_xent(views, 0.3))
    parts = [bilinear_loss(views[:5], mapped, 0), bilinear_loss(views[5:9], mapped, 5)]
    torch.testing.assert_close((5 * parts[0] + 4 * parts[1]) / 9, bilinear_loss(views[:9], mapped))


def test_alignment_and_uniformity_are_those_of_their_paper() -> None:
    signs, steps = ContrastSigns(ALONE), []
    for seed in (1, 2, 3):
        first, second = rows(seed=seed).detach(), rows(seed=seed + 10).detach()
        ALONE.batch([9])
        signs.note_views(first, second, first)
        signs.after_step()
        one, other = (normalize(view, dim=1).double() for view in (first, second))
        steps.append([(one - other).norm(dim=1).pow(2).mean(), torch.pdist(one).pow(2).mul(-2).exp().mean()])
    aligned, close = np.mean(np.array(steps, float), axis=0)
    assert signs.log() == pytest.approx({"alignment": aligned, "uniformity": math.log(close)}, abs=2e-4)
    signs.begin_epoch()
    signs.note_views(E1.expand(9, 2), E1.expand(9, 2), E1.expand(9, 2))
    signs.after_step()
    assert signs.log() == {"alignment": 0.0, "uniformity": 0.0}, "collapsed"
