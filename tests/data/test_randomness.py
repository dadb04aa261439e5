"""Counter-based numbers: the published SplitMix64 values, uniformity, independence of batch order."""

import numpy as np
import torch
from scipy import stats

from unfused_fast.data.randomness import Stream, _mix, _mix_int, _signed, uniform


def test_finaliser_is_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 1234567 (published reference sequence).
    state, expected = (
        1234567,
        [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
    )
    for value in expected:
        state = (state + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        assert _mix_int(state) == value
        assert _mix(torch.tensor([_signed(state)])).item() == _signed(value)


def test_uniform_and_uncorrelated() -> None:
    draws = uniform(torch.arange(50000), 3, seed=5, epoch=1, stream=Stream.CROP).numpy()
    assert draws.min() >= 0 and draws.max() < 1
    for column in range(3):
        assert stats.kstest(draws[:, column], "uniform").pvalue > 1e-4
    other = uniform(torch.arange(50000), 3, seed=5, epoch=2, stream=Stream.CROP).numpy()
    correlations = np.corrcoef(np.hstack([draws, other]).T) - np.eye(6)
    assert np.abs(correlations).max() < 0.02


def test_a_function_of_the_clip_alone() -> None:
    ids = torch.tensor([5, 3, 70000])
    whole = uniform(torch.arange(70001), 4, seed=1, epoch=2, stream=Stream.MIXUP, view=1)
    assert torch.equal(uniform(ids, 4, seed=1, epoch=2, stream=Stream.MIXUP, view=1), whole[ids])
    assert not torch.equal(whole, uniform(torch.arange(70001), 4, seed=1, epoch=2, stream=Stream.MIXUP, view=0))
