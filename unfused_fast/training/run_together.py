"""The train split of a run, each batch divided among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unfused_fast.config import Config
from unfused_fast.data import Loader
from unfused_fast.distributed import Ranks, Share
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training.options import Options


def train_loader(
    config: Config, shards: ShardSet, options: Options, batch_size: int, left_out: Sequence[int]
) -> Loader:
    """The train split; this rank reads its share of each batch.

    Raises UserError unless there is a full batch, with a clip on every rank for each of `train.accumulate` parts.
    """
    share = options.ranks.share
    loader = Loader(
        shards,
        "train",
        config,
        device=options.device,
        batch_size=batch_size,
        share=share,
        threads=options.threads,
        left_out=left_out,
    )
    if not loader.full_batches:
        raise UserError(
            f"{shards.directory}: only {loader.clips} clips of train can be read, fewer than "
            f"train.batch_size = {batch_size}; use a smaller --set train.batch_size"
        )
    least = min(share.sizes(batch_size))
    if config.train.accumulate > least:
        raise UserError(
            f"train.accumulate = {config.train.accumulate}, but of a batch of {batch_size} clips a process has "
            f"{least}; use fewer parts or a larger --set train.batch_size"
        )
    return loader


def parts_of(config: Config, ranks: Ranks, batch_size: int) -> Iterator[slice]:
    """This rank's rows of each part of a batch, one after the other; that part is then the current batch."""
    for number in range(config.train.accumulate):
        yield ranks.batch(batch_size, Share(number, config.train.accumulate))
