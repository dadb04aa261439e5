"""What ranks hold and read of a set, put together, is what one process does: batches and views bit for bit, log-mels by
bytes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfused_fast.config.audio import Store
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.augment import Augmenter
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Batches, Loader
from unfused_fast.distributed.ranks import Ranks
from unfused_fast.distributed.shares import WHOLE, Share
from unfused_fast.shards.sets.table import ShardSet

CPU, CLIPS = torch.device("cpu"), 53
Noise = tuple[ShardSet, list[np.ndarray]]
Made = list[list[torch.Tensor]]
DRAWN = np.r_[np.zeros(45, dtype=np.int64), np.full(CLIPS - 45, 2)]
CASES: dict[str, tuple[dict[str, object], int, list[int], np.ndarray | None]] = {
    "each once": ({}, 16, [], None),
    "no multiple": ({"data.partitions": 12, "views.same_crop": False}, 17, [], None),
    "draws": ({"aug.mixup.memory": 16}, 16, [], DRAWN),
    "clips left out": ({"aug.specaug.warp": 8}, 8, [3, 4, 5, 50], None),
    "more partitions than clips": ({"data.partitions": 64}, 16, [], None),
}
"""Name -> values, batch size, clips left out, clusters of the draws."""


def loader(shards: ShardSet, case: str, share: Share) -> Loader:
    values, size, left_out, _ = CASES[case]
    config = with_values(Config(), values)
    return Loader(shards, "train", config, device=CPU, batch_size=size, share=share, left_out=left_out)


def views(batches: Batches, case: str) -> Made:
    """Of two epochs: ids and counters of each batch, and its views."""
    ranks, made = Ranks(), []
    ranks.share = batches.share
    augment = Augmenter(batches.config, CLIPS, CPU, ranks)
    for epoch in (1, 2):
        for batch in batches.epoch(epoch, clusters=CASES[case][3]):
            assert len(batch.clip_ids) == batch.sizes[ranks.share.rank]
            made.append([batch.clip_ids, batch.counters, *augment(batch.clip_ids, batch.views, batch.draws)])
    return made


@pytest.mark.parametrize(
    ("case", "store"), [*((case, "stream") for case in CASES), ("no multiple", "mmap"), ("draws", "resident")]
)
def test_views_of_any_number_of_ranks_are_those_of_one(wav_noise: Noise, case: str, store: Store) -> None:
    whole = views(placed(loader(wav_noise[0], case, WHOLE), store), case)
    for world in (2, 4):
        parts = [views(placed(loader(wav_noise[0], case, Share(rank, world)), store), case) for rank in range(world)]
        for wanted, *found in zip(whole, *parts, strict=True):
            for one, *pieces in zip(wanted, *found, strict=True):
                assert torch.equal(torch.cat(pieces), one)


def test_a_rank_holds_the_log_mels_of_its_own_clips(wav_noise: Noise) -> None:
    held = [placed(loader(wav_noise[0], "each once", Share(rank, 4)), "resident") for rank in range(4)]
    whole = placed(loader(wav_noise[0], "each once", WHOLE), "resident")
    assert isinstance(whole, ResidentLoader)
    frames = [part.frames for part in held if isinstance(part, ResidentLoader)]
    assert torch.equal(torch.cat(frames), whole.frames)
    for part, values in zip(held, frames, strict=True):
        own = wav_noise[0].clips["samples"].to_numpy()[part.share.of(CLIPS)]
        assert len(values) == (1 + np.maximum(own, 95 * 160) // 160).sum()
        assert [len(batch.clip_ids) for batch in part.whole_clips()] and len(part.index.lines) == len(own)
