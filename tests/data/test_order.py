"""The uniform-over-clusters sampler: its counts, its spread over an epoch, its clips as DALI reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data import order as orders
from unfused_fast.data.augment import masks_of
from unfused_fast.data.crops import first_frames
from unfused_fast.data.order import SplitIndex, rows_of_epoch, uniform_draws
from unfused_fast.data.randomness import Stream, uniform
from unfused_fast.data.stream import Loader
from unfused_fast.distributed.shares import WHOLE, Share
from unfused_fast.shards.sets.table import open_shards

SIZES = {0: 1, 2: 5, 3: 300, 7: 44, 9: 160}
"""Cluster -> clips; others are empty. 510 clips, 102 draws a cluster."""


@pytest.fixture
def clusters() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))


def test_every_non_empty_cluster_is_drawn_equally_often(clusters: np.ndarray) -> None:
    rows, times = uniform_draws(clusters, np.random.default_rng(1))
    assert len(rows) == 510
    assert dict(zip(*np.unique(clusters[rows], return_counts=True), strict=True)) == dict.fromkeys(SIZES, 102)
    drawn = np.bincount(rows, minlength=510)
    for cluster in SIZES:  # within a cluster: all of it before any of it again
        of = drawn[clusters == cluster]
        assert of.max() - of.min() <= 1
    for row in np.unique(rows):
        assert sorted(times[rows == row]) == list(range(drawn[row]))


def test_what_does_not_divide_goes_to_clusters_by_chance(clusters: np.ndarray) -> None:
    short = clusters[:503]
    extra = np.zeros(10)
    for seed in range(400):
        rows, _ = uniform_draws(short, np.random.default_rng(seed))
        counts = np.bincount(short[rows], minlength=10)
        assert counts[list(SIZES)].min() == 100 and counts.sum() == 503
        extra += np.maximum(counts - 100, 0)
    assert chisquare(extra[list(SIZES)]).pvalue > 1e-3


def test_within_a_cluster_every_clip_has_the_same_chance(clusters: np.ndarray) -> None:
    seeds = map(np.random.default_rng, range(300))
    drawn = sum(np.bincount(uniform_draws(clusters, seed)[0], minlength=510) for seed in seeds)
    # 102 of 300 without replacement: the spread is smaller than a multinomial's, so its p-value is on the safe side
    assert chisquare(drawn[clusters == 3]).pvalue > 1e-3


def test_batches_of_draws_are_fair_samples_that_ranks_share(
    clusters: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SplitIndex([Path()] * 3, [""] * 510, np.arange(510) // 170, np.arange(510))
    whole, times = rows_of_epoch(index, WHOLE, 3, 1, clusters, 30)
    assert np.bincount(clusters[whole])[list(SIZES)].tolist() == [102] * 5
    batches = np.split(whole, range(30, 510, 30))
    drawn, _ = uniform_draws(clusters, np.random.Generator(np.random.PCG64([3, 1])))
    for batch, fair in zip(batches, np.split(drawn, range(30, 510, 30)), strict=True):
        assert sorted(batch) == sorted(fair), "a batch holds neighbouring draws"
        assert (np.diff(index.shard[batch]) >= 0).all(), "read shard by shard"
    for rank in range(3):
        mine, own_times = rows_of_epoch(index, Share(rank, 3), 3, 1, clusters, 30)
        assert mine.tolist() == np.concatenate([batch[Share(rank, 3).of(30)] for batch in batches]).tolist()
        assert own_times.tolist() == times[Share(rank, 3).positions(510, 30)].tolist()
    monkeypatch.setattr(orders, "SEGMENTS", 6)
    read, _ = rows_of_epoch(index, WHOLE, 3, 1, clusters, 30)
    assert np.count_nonzero(np.diff(index.shard[read])) < 6 + 3, "index files are bounded"


def test_dali_reads_the_draws_and_repeats_differ(tones) -> None:
    config = with_values(Config(), {"aug.specaug.freq_masks": 2, "data.crop_seconds": 0.5})
    loader = Loader(open_shards(tones), "train", config, device=torch.device("cpu"), batch_size=16)
    clusters = np.r_[np.zeros(50, dtype=np.int64), np.ones(10, dtype=np.int64)]

    def epoch(number: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        batches = list(loader.epoch(number, views=1, clusters=clusters))
        ids, counters = (
            torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in ("clip_ids", "counters")
        )
        return ids, counters, torch.cat([batch.views[0] for batch in batches])

    ids, counters, crops = epoch(3)
    assert np.bincount(clusters[ids]).tolist() == [30, 30]
    assert len(np.unique(counters)) == 60 and ((counters - ids) % len(loader.samples) == 0).all()
    twice = np.flatnonzero(ids == np.bincount(ids).argmax())
    assert len(twice) == 3 and not torch.equal(crops[twice[0]], crops[twice[1]]), "another crop, other masks"
    again = epoch(3)
    assert (again[0] == ids).all() and torch.equal(again[2], crops)
    assert (epoch(4)[0] != ids).any()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_crops_and_masks_by_hand(device: str) -> None:
    """Clip by clip in Python's own float64 and numpy's float32, whose roundings IEEE 754 fixes."""
    values = {"aug.specaug.freq_masks": 2, "aug.specaug.time_masks": 1, "aug.specaug.freq_width": 80}
    config, epoch, view = with_values(Config(), values), 5, 1
    generator = np.random.default_rng(0)
    ids, samples = generator.integers(0, 2**40, 300), generator.integers(1000, 400000, 300)
    given = torch.from_numpy(ids).to(device), torch.from_numpy(samples).to(device)
    draws = {
        stream: uniform(torch.from_numpy(ids), 6, seed=0, epoch=epoch, stream=stream, view=view).numpy()
        for stream in (Stream.CROP, Stream.SPECAUGMENT)
    }
    found = first_frames(config, *given, epoch, view).tolist()
    masks = [torch.stack(span, dim=2).tolist() for span in masks_of(config, given[0], epoch, view)]
    for row in range(300):
        frames = 1 + max(samples[row], 95 * 160) // 160  # of the padded clip; a crop has 96
        assert found[row] == int(float(draws[Stream.CROP][row, 0]) * int(frames - 96 + 1))
        for mask, (axis, size, widest) in enumerate([(0, 64, 64), (0, 64, 64), (1, 96, config.aug.specaug.time_width)]):
            first, second = draws[Stream.SPECAUGMENT][row, 2 * mask : 2 * mask + 2]
            width = np.floor(first * np.float32(widest + 1))
            anchor = np.floor(second * (np.float32(size + 1) - width))
            assert masks[axis][row][mask if axis == 0 else mask - 2] == [anchor, anchor + width]
