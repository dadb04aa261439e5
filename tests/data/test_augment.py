"""Views against torch.nn.functional.interpolate, numpy and hand-worked mixing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from scipy.stats import uniform as uniform_law
from torch.nn.functional import interpolate

from unfused_fast.config.audio import RandomResizeCropConfig
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.data.augment import Augmenter, MixupMemory, kept_places, time_warp
from unfused_fast.data.randomness import Stream, draws_of, masks_of, resize_crops, uniform, warps_of
from unfused_fast.data.stream import Loader
from unfused_fast.kernels.views import augmented_reference
from unfused_fast.shards.sets.table import open_shards

CPU = torch.device("cpu")
ONE = torch.zeros(0, dtype=torch.int64)
"""Bounds of one partition."""


def expected_resize_crop(log_mel: torch.Tensor, draws: torch.Tensor, config: RandomResizeCropConfig) -> torch.Tensor:
    """Clip by clip as BYOL-A describes it: place on a zero canvas, cut, F.interpolate."""

    def length(size: int, most: int, scale: tuple[float, float], draw: float) -> int:
        share = scale[0] + (scale[1] - scale[0]) * draw
        return min(most, max(1, math.floor(np.float32(size * share))))

    bins, frames = log_mel.shape[-2:]
    canvas_frames = int(frames * config.canvas_time)
    made = []
    for clip, draw in zip(log_mel, draws.tolist(), strict=True):
        canvas = torch.zeros(1, bins, canvas_frames)
        left = (canvas_frames - frames) // 2
        canvas[:, :, left : left + frames] = clip
        height = length(bins, bins, config.freq_scale, draw[0])
        width = length(frames, canvas_frames, config.time_scale, draw[2])
        top = min(math.floor(draw[1] * (bins - height + 1)), bins - height)
        start = min(math.floor(draw[3] * (canvas_frames - width + 1)), canvas_frames - width)
        cut = canvas[None, :, top : top + height, start : start + width]
        made.append(interpolate(cut, size=(bins, frames), mode="bicubic", align_corners=True)[0])
    return torch.stack(made)


@pytest.mark.parametrize(("bins", "frames"), [(64, 96), (64, 101), (40, 33)])
def test_random_resize_crop_is_interpolate(bins: int, frames: int) -> None:
    torch.manual_seed(0)
    log_mel, draws, config = torch.randn(40, 1, bins, frames), torch.rand(40, 4), RandomResizeCropConfig()
    draws[0], draws[1] = 0, 0.999999  # the edges of the canvas
    draws[2] = torch.tensor([0.0, 0.999999, 0.0, 0.999999])
    found = augmented_reference(log_mel, None, None, None, *resize_crops(bins, frames, draws, config))
    torch.testing.assert_close(found, expected_resize_crop(log_mel, draws, config), atol=1e-5, rtol=0)


def test_mixup_partners_are_the_last_of_the_own_partition() -> None:
    """Against lists, one for each of three partitions: of clips below 10, below 20, and from 20 on."""
    memory, generator = MixupMemory(3, torch.tensor([10, 20]), 1, 1), torch.Generator().manual_seed(0)
    slots_of, counts = [[-1] * 3 for _ in range(3)], [0] * 3
    for size in (0, 2, 7, 1, 5, 20, 3, 3):
        ids = torch.randint(30, (size,), generator=generator)
        draws = torch.rand(size, 2, generator=generator)
        slots, share = memory.draw(ids, draws, 0.5)
        for clip, draw, slot, found in zip(ids.tolist(), draws.tolist(), slots.tolist(), share.tolist(), strict=True):
            filled = min(counts[clip // 10], 3)
            other = slots_of[clip // 10][int(draw[0] * filled)] if filled else clip
            assert found == pytest.approx(0 if other == clip else draw[1] / 2)
            assert not filled or memory.crops[slot].item() == other == memory.clip_ids[slot].item()
        memory.push(ids, ids.reshape(size, 1, 1, 1).float())
        for clip in ids.tolist():
            slots_of[clip // 10][counts[clip // 10] % 3] = clip
            counts[clip // 10] += 1


def test_mixup_share_is_uniform_up_to_the_ratio() -> None:
    memory, ids = MixupMemory(8, ONE, 1, 1), torch.arange(20000)
    memory.push(torch.arange(8) + 100_000, torch.zeros(8, 1, 1, 1))
    _, share = memory.draw(ids, uniform(ids, 2, seed=1, epoch=1, stream=Stream.MIXUP), 0.4)
    deciles = torch.histc(share, 10, 0, 0.4) / len(ids)
    assert share.max() < 0.4 and (deciles - 0.1).abs().max() < 0.01  # of 20,000 a decile has a deviation of 0.002


def test_views_do_not_depend_on_batch_order_and_differ_between_views() -> None:
    config = with_values(Config(), {"aug.mixup.ratio": 0, "train.seed": 3})
    make = Augmenter(config, 10, CPU)
    ids, crops = torch.tensor([4, 1, 9]), torch.randn(3, 1, 64, 96)
    first, second = make(ids, (crops, crops), draws_of(config, ids, 2, 2))
    order = torch.tensor([2, 0, 1])
    again, _ = make(ids[order], (crops[order], crops[order]), draws_of(config, ids[order], 2, 2))
    torch.testing.assert_close(again, first[order], atol=1e-6, rtol=0)
    assert (first - second).abs().max() > 0.1
    other_epoch, _ = make(ids, (crops, crops), draws_of(config, ids, 3, 2))
    assert (first - other_epoch).abs().max() > 0.1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_draws_of_an_epoch_are_those_of_each_clip_and_view(device: str) -> None:
    """Checkpoints depend on it: what is drawn at once is what the generator gives for each clip alone."""
    config = with_values(Config(), {"train.seed": 3, "aug.specaug.warp": 5, "aug.specaug.time_masks": 2})
    counters = torch.tensor([4, 1, 900, 2**40])
    made = draws_of(config, counters.to(device), 7, 3)
    draws = type(made)(*(tuple(array.cpu() for array in arrays) for arrays in made))
    for row, view in [(0, 0), (1, 2), (3, 1)]:
        own = counters[row : row + 1]
        given = {"seed": 3, "epoch": 7, "view": view}
        assert torch.equal(draws.mixup[0][view, row], uniform(own, 2, stream=Stream.MIXUP, **given)[0])
        crops = resize_crops(64, 96, uniform(own, 4, stream=Stream.RESIZE_CROP, **given), config.aug.rrc)
        wanted = masks_of(config, own, 7, view), warps_of(config, own, 7, view), crops
        found = draws.of(slice(row, row + 1))
        for arrays, expected in zip((found.masks, found.warps, found.resize), wanted, strict=True):
            assert all(torch.equal(one[view], other) for one, other in zip(arrays, expected, strict=True))
    without = {"aug.mixup.ratio": 0, "aug.rrc.enabled": "false", "aug.specaug.freq_masks": 0}
    assert not any(draws_of(with_values(config, without), counters, 7, 1)[2:])


def test_augmenter_state_round_trip() -> None:
    """Of a mixup memory that is full, and of a running norm."""
    values = {"frontend.n_mels": 8, "data.crop_seconds": 0.08, "data.norm": "running"}
    config = with_values(Config(), values)
    one, two = (Augmenter(config, 6, CPU) for _ in range(2))
    crops, ids = torch.randn(4, 1, 8, 9), torch.arange(4)
    assert torch.equal(one.plain((crops,))[0], crops), "nothing was seen yet"
    for start in (0, 4):
        one(ids + start, (torch.randn(4, 1, 8, 9) * 2,), draws_of(config, ids + start, 1, 1))
    two.load_state(one.state())
    draws = draws_of(config, ids, 2, 1)
    assert torch.equal(one(ids, (crops,), draws)[0], two(ids, (crops,), draws)[0])
    assert not torch.allclose(one.plain((crops,))[0], crops)


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


def test_warps_are_drawn_within_the_bounds_and_apart_for_views() -> None:
    config, counters = with_values(Config(), {"aug.specaug.warp": 5}), torch.arange(20000)
    origin, target = warps_of(config, counters, 3, 0)
    assert origin.min() >= 5 and origin.max() <= 90 and origin.mean().item() == pytest.approx(47.5, abs=0.5)
    shift = target - origin
    assert shift.abs().max() < 5.0001 and shift.mean().item() == pytest.approx(0, abs=0.1)
    assert shift.std().item() == pytest.approx(10 / 12**0.5, abs=0.05)
    assert not torch.equal(origin, warps_of(config, counters, 3, 1)[0])
    assert torch.equal(origin[7:9], warps_of(config, counters[7:9], 3, 0)[0])


def test_an_epochs_views_are_warped_and_then_masked(tones: Path) -> None:
    plain = with_values(Config(), {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0})
    config = with_values(Config(), {"aug.specaug.warp": 20})
    loaders = [Loader(open_shards(tones), "train", each, device=CPU, batch_size=16) for each in (plain, config)]
    moved = 0
    for before, after in zip(loaders[0].epoch(2), loaders[1].epoch(2), strict=True):
        for view, found in enumerate(after.views):
            origin, target = warps_of(config, before.clip_ids, 2, view)
            given = zip(before.views[0][:, 0].numpy(), origin.numpy(), target.numpy(), strict=True)
            warped = torch.from_numpy(np.stack([numpy_warp(*each) for each in given])).float()
            bins, frames = kept_places(*masks_of(config, before.clip_ids, 2, view), warped.shape[1:])
            expected = warped * bins[:, :, None] * frames[:, None]
            torch.testing.assert_close(found[:, 0], expected, atol=2e-3, rtol=0)
            moved += int((warped - before.views[0][:, 0]).abs().amax(dim=(1, 2)).gt(0.1).sum())
        without = list(loaders[1].epoch(2, masks=False))
    assert moved > 60, "most views of most clips are another"
    assert torch.equal(without[0].views[0], next(iter(loaders[0].epoch(2))).views[0]), "a pass without augmentation"


def augmented(values: dict[str, float], ids: torch.Tensor, crops: torch.Tensor) -> torch.Tensor:
    """Two views (2, B, 1, F, T), without mixup and crops."""
    plain = {"aug.mixup.ratio": 0, "aug.rrc.enabled": False, "data.crop_seconds": (crops.shape[3] - 1) / 100}
    config = with_values(Config(), {**plain, **values})
    return torch.stack(Augmenter(config, 400, CPU)(ids, (crops, crops), draws_of(config, ids, 3, 2)))


def test_the_fader_adds_a_line_whose_ends_are_uniform() -> None:
    ids, crops = torch.arange(400), torch.randn(400, 1, 64, 8)
    lines = (augmented({"aug.fader": 0.5}, ids, crops) - crops)[:, :, 0]
    assert torch.allclose(lines, lines[:, :, :1].expand_as(lines), atol=1e-6), "the same in every bin"
    lines = lines[:, :, 0]
    steps = lines.diff(dim=2)
    assert torch.allclose(steps, steps[..., :1].expand_as(steps), atol=1e-6), "straight"
    for ends in (lines[..., 0].flatten().numpy(), lines[..., -1].flatten().numpy()):
        assert kstest(ends, uniform_law(-0.5, 1).cdf).pvalue > 0.01
    assert abs(np.corrcoef(lines[0, :, 0], lines[1, :, 0])[0, 1]) < 0.2, "another one in each view"
    assert not torch.equal(augmented({}, ids, crops), augmented({"aug.fader": 0.5}, ids, crops))


def test_noise_is_mixed_in_by_its_share() -> None:
    """Of log-mels far above the noise log(1 - share) is left, of those far below it log(share) + n."""
    ids, far = torch.arange(400), torch.full((400, 1, 64, 9), 40.0)
    above = (augmented({"aug.noise": 0.4}, ids, far) - far).flatten(2).numpy()
    below = augmented({"aug.noise": 0.4}, ids, -far).flatten(2).numpy()
    share = 1 - np.exp(above.mean(axis=2))
    assert kstest(share[0], uniform_law(0, 0.4).cdf).pvalue > 0.01 and np.ptp(above, axis=2).max() < 1e-4
    noise = below - np.log(share)[..., None]
    assert kstest(noise[0, share[0] > 0.01][:50].ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise[0, 0], noise[1, 0])[0, 1]) < 0.2 and abs(np.corrcoef(*noise[0, :2])[0, 1]) < 0.2


def test_local_views_are_parts_of_views_at_any_place() -> None:
    values = {"frontend.n_mels": 8, "data.crop_seconds": 0.2, "views.local_seconds": 0.15, "aug.mixup.ratio": 0.0}
    ids, crops, made = torch.arange(200), (torch.randn(200, 1, 8, 21),) * 4, []
    for count in (0, 2):
        config = with_values(preset("recommended", "pretrain", "decar-v2"), {**values, "views.local": count})
        made.append(Augmenter(config, 200, CPU)(ids, crops, draws_of(config, ids, 1, 4)))
    whole, parts = made
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
    places = []
    for view in (2, 3):
        assert parts[view].shape == (200, 1, 8, 16)
        same = (whole[view].unfold(3, 16, 1).movedim(3, 1) == parts[view][:, None]).flatten(2).all(dim=2)
        assert bool((same.sum(dim=1) == 1).all()), "one place of six each"
        places.append(same.int().argmax(dim=1))
        assert torch.bincount(places[-1], minlength=6).min() > 15  # of 33
    assert not torch.equal(*places)
    one = Augmenter(config, 200, CPU)(ids, crops[:1], draws_of(config, ids, 1, 4))
    assert torch.equal(one[0], whole[0]), "a pass over the clips has whole views alone"
