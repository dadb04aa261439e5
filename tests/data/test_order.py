"""The order of an epoch: each clip once, in the same batches on any number of ranks; and the uniform-over-clusters
sampler: its counts, its spread over an epoch, its clips as DALI reads them.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data import order as orders
from unfused_fast.data import stream
from unfused_fast.data.crops import first_frames
from unfused_fast.data.order import EpochOrder, Order, batches_of, read_split_index, uniform_draws
from unfused_fast.data.randomness import Stream, masks_of, uniform
from unfused_fast.data.stream import Loader
from unfused_fast.distributed.shares import WHOLE, Share
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards

SIZES = {0: 1, 2: 5, 3: 300, 7: 44, 9: 160}
"""Cluster -> clips; others are empty. 510 clips, 102 draws a cluster."""


def batches(order: Order, found: EpochOrder) -> list[list[int]]:
    """Rows of a rank's clips in each batch."""
    ends = np.cumsum(found.sizes[:, order.share.rank])
    assert ends[-1] == len(found.entries) == len(found.times)
    return [part.tolist() for part in np.split(order.rows[order.own][found.entries], ends[:-1])]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [*chain.from_iterable(parts)]


TAR = 37
"""Clips of a shard."""


def epoch(
    clips: int, rows: np.ndarray, share: Share, partitions: int, size: int, number: int = 1, seed: int = 3
) -> list[list[int]]:
    order = Order(clips, rows, share, partitions, size)
    return batches(order, order.every_clip(rows[order.own] // TAR, seed, number))


@pytest.mark.parametrize(
    ("clips", "partitions", "size", "worlds", "left_out"),
    [
        (512, 8, 64, (2, 4, 8), []),
        (510, 8, 30, (2, 4, 8), []),
        (61, 12, 7, (2, 3, 4, 6, 12), [0, 5, 60]),
        (5, 8, 2, (2,), []),
        (1, 8, 1, (1,), []),
        (400, 8, 16, (2, 4), list(range(40, 100))),  # most of a partition
    ],
)
def test_an_epoch_is_the_same_batches_on_any_number_of_ranks(
    clips: int, partitions: int, size: int, worlds: tuple[int, ...], left_out: list[int]
) -> None:
    rows = np.setdiff1d(np.arange(clips), left_out)
    bounds = [partition * clips // partitions for partition in range(partitions + 1)]
    held = [[row for row in rows.tolist() if first <= row < stop] for first, stop in pairwise(bounds)]
    whole = epoch(clips, rows, WHOLE, partitions, size)
    assert sorted(flat(whole)) == rows.tolist()
    assert {len(batch) for batch in whole[:-1]} <= {size} and len(whole[-1]) <= size
    for batch in whole[:-1]:
        for own in held:
            share = Fraction(size * len(own), len(rows))
            assert abs(sum(row in own for row in batch) - share) < (1 if clips == partitions * 64 else 2)
    for own in held:  # shard after shard, and no two epochs alike
        mine = [row for batch in whole for row in batch if row in own]
        assert len([*groupby(mine, lambda row: row // TAR)]) == len({row // TAR for row in own})
    given = clips, rows, WHOLE, partitions, size
    assert epoch(*given) == whole
    assert clips <= partitions or whole not in (epoch(*given, 2), epoch(*given, 1, seed=4))
    for world in worlds:
        parts = [epoch(clips, rows, Share(rank, world), partitions, size) for rank in range(world)]
        assert [flat(each) for each in zip(*parts, strict=True)] == whole
        for rank, part in enumerate(parts):
            assert all(clips * rank // world <= row < clips * (rank + 1) // world for batch in part for row in batch)


def test_partitions_alternate_in_the_order_of_their_reversed_bits() -> None:
    """Worked by hand: of four, 0, 2, 1, 3; of three, with sizes 1, 2 and 4, the order of the places
    0 + 0/3; (0 + 2/3)/2, (1 + 2/3)/2; (0 + 1/3)/4, (1 + 1/3)/4, (2 + 1/3)/4, (3 + 1/3)/4.
    """
    assert batches_of(np.repeat(np.arange(4), 2), 4, 1).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert batches_of(np.repeat(np.arange(3), (1, 2, 4)), 3, 1).tolist() == [0, 2, 5, 1, 3, 4, 6]
    two_blocks = np.array([0, 0, 1, 2, 3, 3])  # of two partitions: aab, then abb
    assert batches_of(two_blocks, 2, 3).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("ranks", "partitions", "said"),
    [
        (3, 8, "use 2 or 4 processes, or --set data.partitions=9,"),
        (16, 8, "use 8 processes, or --set data.partitions=16,"),
        (5, 7, "use 1 or 7 processes, or --set data.partitions=10,"),
    ],
)
def test_ranks_that_do_not_divide_the_partitions(ranks: int, partitions: int, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Share(0, ranks).of_partitions(partitions)


def test_a_rank_reads_the_indexes_of_its_own_shards(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, read, check = open_shards(tones), list[str](), orders.check_index
    monkeypatch.setattr(orders, "check_index", lambda tar, *more: read.append(tar.name) or check(tar, *more))
    whole = read_split_index(shards, "train", slice(0, 60))
    assert whole.clip_ids.tolist() == list(range(60)) and len(set(read)) == len(whole.tars) > 2
    read.clear()
    parts = [read_split_index(shards, "train", Share(rank, 4).of(60)) for rank in range(4)]
    assert flat(part.lines for part in parts) == whole.lines
    assert np.concatenate([part.shard for part in parts]).tolist() == whole.shard.tolist()
    assert read == [whole.tars[number].name for part in parts for number in dict.fromkeys(part.shard.tolist())]


def test_index_files_are_gone_once_they_are_read(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in memory, where a killed process would leave them."""
    written, write = list[Path](), stream.write_indexes
    monkeypatch.setattr(orders, "MEMORY", tmp_path)
    monkeypatch.setattr(stream, "write_indexes", lambda folder, *more: written.append(folder) or write(folder, *more))
    batches = Loader(open_shards(tones), "train", Config(), device=torch.device("cpu"), batch_size=8).epoch(1)
    next(batches)
    assert [folder.parent for folder in written] == [tmp_path] and not list(tmp_path.iterdir())
    assert sum(len(batch.clip_ids) for batch in batches) == 52


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
    def draws(share: Share, partitions: int = 6) -> tuple[list[list[int]], list[int]]:
        order = Order(510, np.arange(510), share, partitions, 30)
        found = order.draws(clusters, 3, 3, 1)
        return batches(order, found), found.times.tolist()

    whole, times = draws(WHOLE)
    assert np.bincount(clusters[flat(whole)])[list(SIZES)].tolist() == [102] * 5
    drawn, _ = uniform_draws(clusters, np.random.Generator(np.random.PCG64([3, 1])))
    for batch, fair in zip(whole, np.split(drawn, range(30, 510, 30)), strict=True):
        assert batch == sorted(fair), "a batch holds neighbouring draws, read shard by shard"
    parts, of_ranks = zip(*(draws(Share(rank, 3)) for rank in range(3)), strict=True)
    assert [flat(each) for each in zip(*parts, strict=True)] == whole
    seen = sorted(zip(flat(whole), times, strict=True))
    assert sorted(zip(flat(flat(parts)), flat(of_ranks), strict=True)) == seen
    monkeypatch.setattr(orders, "SEGMENTS", 6)
    read = np.array(flat(draws(WHOLE, 1)[0])) // 170
    assert np.count_nonzero(np.diff(read)) < 6 + 3, "index files are bounded"


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
    masks = torch.stack(masks_of(config, given[0], epoch, view), dim=2).tolist()
    for row in range(300):
        frames = 1 + max(samples[row], 95 * 160) // 160  # of the padded clip; a crop has 96
        assert found[row] == int(float(draws[Stream.CROP][row, 0]) * int(frames - 96 + 1))
        for mask, (axis, size, widest) in enumerate([(0, 64, 64), (0, 64, 64), (1, 96, config.aug.specaug.time_width)]):
            first, second = draws[Stream.SPECAUGMENT][row, 2 * mask : 2 * mask + 2]
            width = np.floor(first * np.float32(widest + 1))
            anchor = np.floor(second * (np.float32(size + 1) - width))
            assert masks[row][mask] == [64 * axis + anchor, 64 * axis + anchor + width]
