"""Parameters and multiply-accumulates against the layers' own arithmetic."""

from __future__ import annotations

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.models.cost import encoder_cost


def test_the_papers_encoder_by_hand() -> None:
    # 3 x 3 convolutions at 64 x 96, 32 x 48 and 16 x 24; BatchNorm has 2 parameters a channel
    convolutions = [9 * 64 + 64, *[9 * 64 * 64 + 64] * 2]
    student = sum(convolutions) + 3 * 2 * 64
    connected = (512 * 2048 + 2048) + (2048 * 2048 + 2048)
    macs = 9 * 64 * 64 * 96 + 9 * 64 * 64 * (32 * 48 + 16 * 24)
    found = encoder_cost(Config(), "student3")
    assert (found.parameters, found.macs) == (student, macs) and student == 74_880
    whole = encoder_cost(Config(), "full")
    assert whole.parameters == student + connected == 5_321_856
    assert whole.macs == macs + 12 * (512 * 2048 + 2048 * 2048), "12 time steps are left of 96 frames"


def test_efficientnets_published_size() -> None:
    config = with_values(Config(), {"model.encoder": "efficientnet_b0"})
    assert encoder_cost(config, "full").parameters == 4_006_972
    assert 0 < encoder_cost(config, "student3").macs < encoder_cost(config, "full").macs
