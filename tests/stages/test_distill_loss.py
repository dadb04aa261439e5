"""Every term of paper Eq. 1 on hand-worked numbers."""

import math

import pytest
import torch

from unfused_fast.config.fields import DistillConfig
from unfused_fast.stages.distillation import distill_loss, kl_term, mse_term


def test_kl_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])  # p = (3/4, 1/4), q = (1/2, 1/2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_term(student, teacher).item() == pytest.approx(expected, abs=1e-6)
    # the other direction differs, so the direction is pinned: KL(teacher || student)
    assert kl_term(teacher, student).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), abs=1e-6
    )


def test_kl_temperature_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kl_term(student, teacher, temperature=2.0).item() == pytest.approx(expected, abs=1e-6)


def test_kl_is_a_mean_over_clips() -> None:
    student, teacher = torch.randn(1, 4), torch.randn(1, 4)
    torch.testing.assert_close(kl_term(student.repeat(5, 1), teacher.repeat(5, 1)), kl_term(student, teacher))


def test_mse_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 4.0], [0.0, 5.0]])
    # cosines 0 and 1: (2 - 2 * 0 + 2 - 2 * 1) / 2 = 1
    assert mse_term(student, teacher).item() == pytest.approx(1.0)
    assert mse_term(student, teacher, "logits").item() == pytest.approx((9 + 16 + 0 + 9) / 4)


def test_equation_1_by_hand() -> None:
    log3 = math.log(3)
    deepest = torch.tensor([[log3, 0.0]])  # (3/4, 1/4)
    blocks = [torch.tensor([[0.0, 0.0]]), torch.tensor([[log3, 0.0]]), torch.tensor([[0.0, log3]])]
    parts = distill_loss(deepest, blocks, torch.tensor([0]), DistillConfig(alpha=0.7, beta=0.003))
    ce, ce_blocks = -math.log(0.75), -math.log(0.5) - math.log(0.75) - math.log(0.25)
    kl_blocks = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) + 0 + (0.75 * math.log(3) + 0.25 * math.log(1 / 3))
    mse_blocks = 1 + 0 + 2  # a zero vector has no direction: |0 - unit|^2 = 1; equal: 0; orthogonal: 2
    assert parts["ce"].item() == pytest.approx(ce, abs=1e-6)
    assert parts["ce_blocks"].item() == pytest.approx(ce_blocks, abs=1e-6)
    assert parts["kl_blocks"].item() == pytest.approx(kl_blocks, abs=1e-6)
    assert parts["mse_blocks"].item() == pytest.approx(mse_blocks, abs=1e-6)
    assert parts["total"].item() == pytest.approx(ce + 0.7 * ce_blocks + 0.3 * kl_blocks + 0.003 * mse_blocks, abs=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_teacher_stops_the_gradient_of_kl_and_mse(detach: bool) -> None:
    deepest = torch.randn(4, 3, requires_grad=True)
    config = DistillConfig(detach_teacher=detach)
    parts = distill_loss(deepest, [torch.randn(4, 3)], torch.tensor([0, 1, 2, 0]), config)
    (parts["kl_blocks"] + parts["mse_blocks"]).backward() if not detach else None
    assert (parts["kl_blocks"].requires_grad or parts["mse_blocks"].requires_grad) is not detach
