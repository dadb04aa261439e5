"""Time warp and masks against numpy; what an epoch's views get of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.order import masks_of
from unfused_fast.data.spec_augment import SpecAugment, mask, time_warp, warps_of
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.shards.sets.table import open_shards

CPU = torch.device("cpu")


def numpy_warp(log_mel: np.ndarray, origin: float, target: float) -> np.ndarray:
    """Each row read at the times that three points of a broken line give."""
    last = log_mel.shape[1] - 1
    source = np.interp(np.arange(last + 1), [0, target, last], [0, origin, last])
    return np.stack([np.interp(source, np.arange(last + 1), row) for row in log_mel])


def test_a_time_warp_is_a_broken_line() -> None:
    generator = np.random.default_rng(0)
    log_mel = generator.standard_normal((20, 6, 41)).astype(np.float32)
    origin = generator.uniform(5, 35, 20).astype(np.float32)
    target = (origin + generator.uniform(-5, 5, 20)).astype(np.float32)
    found = time_warp(torch.from_numpy(log_mel), torch.from_numpy(origin), torch.from_numpy(target))
    expected = np.stack([numpy_warp(*each) for each in zip(log_mel, origin, target, strict=True)])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(found[..., [0, -1]].numpy(), log_mel[..., [0, -1]], atol=1e-5)


def test_a_warp_by_hand_and_one_of_nothing() -> None:
    ramp = torch.arange(5.0).reshape(1, 1, 5)
    # frame 2 moves to 3: times 0..3 run over 0..2, times 3..4 over 2..4
    found = time_warp(ramp, torch.tensor([2.0]), torch.tensor([3.0]))
    torch.testing.assert_close(found, torch.tensor([[[0, 2 / 3, 4 / 3, 2, 4]]]))
    torch.testing.assert_close(time_warp(ramp, torch.tensor([2.0]), torch.tensor([2.0])), ramp)


def test_warps_are_drawn_within_the_bounds_and_apart_for_views() -> None:
    config, counters = with_values(Config(), {"aug.specaug.warp": 5}), torch.arange(20000)
    origin, target = warps_of(config, counters, 3, 0)
    assert origin.min() >= 5 and origin.max() <= 90 and origin.mean().item() == pytest.approx(47.5, abs=0.5)
    shift = target - origin
    assert shift.abs().max() < 5.0001 and shift.mean().item() == pytest.approx(0, abs=0.1)
    assert shift.std().item() == pytest.approx(10 / 12**0.5, abs=0.05)
    assert not torch.equal(origin, warps_of(config, counters, 3, 1)[0])
    assert torch.equal(origin[7:9], warps_of(config, counters[7:9], 3, 0)[0])


@pytest.mark.parametrize("engine", ["dali", "torch"])
def test_an_epochs_views_are_warped_and_then_masked(tones: Path, engine: Literal["dali", "torch"]) -> None:
    plain = with_values(Config(), {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0})
    config = with_values(Config(), {"aug.specaug.warp": 20})
    loaders = [
        Loader(open_shards(tones), "train", each, device=CPU, batch_size=16, log_mel=engine) for each in (plain, config)
    ]
    moved = 0
    for before, after in zip(loaders[0].epoch(2), loaders[1].epoch(2), strict=True):
        for view, found in enumerate(after.views):
            origin, target = warps_of(config, before.clip_ids, 2, view)
            given = zip(before.views[0][:, 0].numpy(), origin.numpy(), target.numpy(), strict=True)
            warped = torch.from_numpy(np.stack([numpy_warp(*each) for each in given])).float()
            expected = mask(warped, *masks_of(config, before.clip_ids, 2, view))
            torch.testing.assert_close(found[:, 0], expected, atol=2e-3, rtol=0)
            moved += int((warped - before.views[0][:, 0]).abs().amax(dim=(1, 2)).gt(0.1).sum())
        without = list(loaders[1].epoch(2, masks=False))
    assert moved > 60, "most views of most clips are another"
    assert torch.equal(without[0].views[0], next(iter(loaders[0].epoch(2))).views[0]), "a pass without augmentation"


@pytest.mark.parametrize("engine", ["dali", "torch"])
def test_warped_views_out_of_memory_are_the_streams(tones: Path, engine: Literal["dali", "torch"]) -> None:
    config = with_values(Config(), {"aug.specaug.warp": 20, "views.same_crop": False})
    stream = Loader(open_shards(tones), "train", config, device=CPU, batch_size=16, log_mel=engine)
    for wanted, found in zip(stream.epoch(2), placed(stream, "resident").epoch(2), strict=True):
        for one, other in zip(found.views, wanted.views, strict=True):
            # a value lies between two that float16 rounds, by 2 ** -11 of the larger at most
            assert bool(((one - other).abs() <= 2**-11 * other.abs().amax() + 3e-4).all())
            assert torch.equal(one == 0, other == 0)


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    config = with_values(Config(), {"aug.specaug.freq_masks": 0, "aug.specaug.time_width": 0})
    assert not config.aug.specaug.active
    log_mel = torch.randn(3, 64, 96)
    assert torch.equal(SpecAugment(config, torch.arange(3), 1, 1)(log_mel, slice(0, 3), 0), log_mel)
