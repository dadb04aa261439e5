"""A run directory that one process keeps and several train for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.data import Loader
from unfused_fast.distributed import Ranks, Share
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import Run


class Follower(Run):
    """The run as ranks other than 0 see it: they neither read nor write its directory."""

    def __init__(self, out: Path, stage: str, ranks: Ranks, facts: dict[str, Any]) -> None:
        self.out, self.stage, self.stopping, self._ranks = out, stage, False, ranks
        self.order, self.resumed, self._result = facts["order"], facts["resumed"], facts["result"]

    def __exit__(self, *exception: object) -> None:
        """There is nothing to let go of."""

    def start(self) -> None:
        """There is nothing to make."""

    def result(self) -> dict[str, Any] | None:
        """As rank 0's."""
        return None if self._result is None else dict(self._result)

    def last_logged(self) -> dict[str, Any]:
        """Only who writes the log tells of it."""
        return {}

    def log(self, epoch: int, values: dict[str, Any]) -> None:
        """Rank 0 writes it."""

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Waits for rank 0; what it wrote."""
        return dict(self._ranks.first(dict))

    def _discard_unsaved(self) -> None:
        """Rank 0 does."""


class Leader(Run):
    """The run as the process sees it that keeps the directory for others."""

    ranks: Ranks
    finished: dict[str, Any] | None

    def result(self) -> dict[str, Any] | None:
        """What the others were told."""
        return self.finished

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """As Run's; the others go on when it is written."""
        return dict(self.ranks.first(lambda: super(Leader, self).finish(result)))


def open_run(out: Path, stage: str, config: Config, shards: ShardSet, options: Options, **inputs: Any) -> Run:
    """The run directory, kept by rank 0. Raises UserError as Run."""
    ranks = options.ranks
    if not ranks.together:
        return Run(out, stage, config, shards, options, **inputs)
    opened = list[Leader]()

    def facts() -> dict[str, Any]:
        run = Leader(out, stage, config, shards, options, **inputs)
        run.ranks, run.finished = ranks, Run.result(run)
        opened.append(run)
        return {"order": run.order, "resumed": run.resumed, "result": run.finished}

    told = ranks.first(facts)
    return opened[0] if ranks.leads else Follower(out, stage, ranks, told)


def load_together(
    run: Run, ranks: Ranks, fault: Callable[[dict[str, Any]], str | None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What rank 0's Run.load gives, on every rank; says so where another number of ranks wrote it."""
    read = list[dict[str, Tensor]]()

    def load() -> dict[str, Any]:
        tensors, state = run.load(fault)
        read.append(tensors)
        return state

    state = ranks.first(load)
    if (before := state.get("ranks", 1)) != ranks.world_size:
        console.print(
            f"{run.out}: on {ranks.world_size} ranks now, {before} before: the same batches, but sums are rounded "
            "otherwise",
            style="yellow",
        )
    return ranks.tensors_from_first(read[0] if read else None), dict(state)


def train_loader(
    config: Config, shards: ShardSet, options: Options, batch_size: int, left_out: Sequence[int]
) -> Loader:
    """The train split, of whose batches of all ranks this one reads its share.

    Raises UserError unless there is a full batch, and of it on every rank a clip for each of `train.accumulate` parts.
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
            f"{shards.directory}: only {loader.clips} clips of train can be read; want train.batch_size = {batch_size} "
            "at least"
        )
    least = min(share.sizes(batch_size))
    if config.train.accumulate > least:
        raise UserError(
            f"train.accumulate = {config.train.accumulate}, but of a batch of {batch_size} clips a process has "
            f"{least}; use fewer parts or a larger --set train.batch_size"
        )
    return loader


def parts_of(config: Config, ranks: Ranks, batch_size: int) -> Iterator[slice]:
    """This rank's rows of each part of a batch, one after the other; that part is then the batch at hand."""
    for number in range(config.train.accumulate):
        yield ranks.batch(batch_size, Share(number, config.train.accumulate))
