"""Interfaces: Trainable, a network with its loss, for the training loop; and Method, a Trainable that learns without
labels.

B clips in a batch, F mel bins, T frames of a crop, N clips of the train split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unfused_fast.clustering import MemoryBank
from unfused_fast.config import Config
from unfused_fast.distributed import Ranks
from unfused_fast.errors import UserError
from unfused_fast.models import PretrainNetwork

Log = dict[str, Any]
"""Numbers of an epoch for log.jsonl."""
Passes = Callable[[bool], Iterator[tuple[Tensor, Tensor]]]
"""`passes(augmented)` goes once through the train split: (B,) clip ids and one view (B, 1, F, T) of each. The crops are
the same in every pass; with `augmented` they are masked and augmented. Raises Interrupted after a signal.
"""
LEAST_CLIPS = 4
"""Of a batch, or of its part with `train.accumulate`, whose clips a loss compares. Ours: with fewer there is hardly a
clip to be told from, and correlations over a batch are all near 1 or -1."""


class Trainable(nn.Module):
    """A network with its loss. State is `state_dict` and `notes`; the training loop saves and restores both.

    The defaults fit a task with one view of each clip and no work between steps.
    """

    views = 1
    """Views of each clip in a step: of one crop, or with `views.same_crop` false of a crop each."""
    uses_partial_batch = False
    """Whether the last, partial batch of an epoch, which takes no step, is given to `partial_batch`."""
    bank: MemoryBank | None = None
    """Rows of the clips, on each rank of its own. A generation is written with a checkpoint at the end of an epoch."""
    refilling = False
    """Whether rows of the bank are being replaced between two epochs, so that they do not form a generation."""
    mixup_centroids: Tensor | None = None
    """(K, F) of unit norm: centroids of clips' means over time, for views with `aug.mixup.partner` = farthest."""
    clusters: Tensor | None = None
    """(N,) clusters of the bank's rows, kept with its generation; `data.sampler` may draw clips evenly over them."""

    def __init__(self, network: nn.Module) -> None:
        """`network` is what the optimiser of `optim` trains; parameters elsewhere are updated in `after_step`."""
        super().__init__()
        self.network = network
        self.run: Callable[..., Any] = network.__call__
        """`run(view)` is the network on a batch of views, with torch.compile and autocast where they are enabled;
        `run(view, network=other)` another network, with autocast. The rest of `loss` is in float32. What `run` returns
        may be overwritten in the next step: keep a copy."""
        self.part: Callable[[str], AbstractContextManager[Any]] = nullcontext
        """Names a part of the epoch in log.jsonl and in the trace of --profile."""

    @property
    def finished(self) -> bool:
        """Whether to stop before `train.epochs`."""
        return False

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        """Prepares an epoch, counted from 1. Raises Collapsed where nothing is left to learn."""
        return {}

    def loss(self, views: tuple[Tensor, ...], clip_ids: Tensor) -> Tensor:
        """`views` tensors (B, 1, F, T), (B,) ids -> () mean loss of the clips; without waiting for the device."""
        raise NotImplementedError

    def after_step(self, clip_ids: Tensor) -> None:
        """After the optimiser's step on a batch (B,): moving averages, queues, the bank, heads with own rates."""

    def partial_batch(self, clip_ids: Tensor, view: Tensor) -> None:
        """The clips of the last, partial batch: (B,) and (B, 1, F, T)."""

    def end_epoch(self) -> Log:
        """Checks and measurements after an epoch: scores of the network, signs of collapse."""
        return {}

    def summary(self, log: Log) -> str:
        """The part of an epoch's log that is printed, in addition to loss and rate."""
        return ""

    def notes(self) -> dict[str, Any]:
        """State other than tensors, as JSON values; under other names than `epoch` and `batch`, the position."""
        return {}

    def load_notes(self, notes: dict[str, Any]) -> None:
        """Inverse of notes, and the position; creates the tensors whose sizes they give."""

    def fault(self, notes: dict[str, Any]) -> str | None:
        """Why a checkpoint with these notes cannot be resumed from, or None."""
        return None


class Signs(nn.Module):
    """Early signs of a collapse, over the steps of an epoch (signs.py). Part of a checkpoint, so that a run resumed
    within an epoch logs the same numbers; nothing waits for the device before `log`.
    """

    def begin_epoch(self) -> None:
        """Forgets the epoch before."""

    def after_step(self) -> None:
        """The step counts."""

    def log(self) -> Log:
        """For the epoch's log."""
        raise NotImplementedError

    def summary(self, log: Log) -> str:
        """For the epoch's line."""
        raise NotImplementedError


class Method(Trainable):
    """A way to learn from clips without labels. `network.encoder` is kept in the end; heads other than
    `network.projector`, queues, moving averages and signs of collapse are submodules and buffers of the method.
    """

    title: str
    """Name in tables."""

    def __init__(
        self,
        config: Config,
        clips: int,
        first_id: int,
        device: torch.device,
        ranks: Ranks,
        left_out: Sequence[int] = (),
    ) -> None:
        """For `clips` clips whose ids begin at `first_id`; those `left_out` cannot be read: no batch has them, and a
        bank gives each the row of another clip. Raises UserError where the config does not fit them.
        """
        super().__init__(self.build(config))
        self.config, self.device, self.ranks = config, device, ranks
        self.first_id, self.left_out = first_id, left_out
        self.views += config.views.local
        self.set_up(clips)

    def set_up(self, clips: int) -> None:
        """Makes what the method has beside `network`: heads, queues, a bank; `views`, where they are not those of the
        class and local ones.
        """

    @classmethod
    def build(cls, config: Config) -> nn.Module:
        """The network that `optim` trains; other commands build it to read `encoder` and, where there is one,
        `projector` from a checkpoint.
        """
        return PretrainNetwork(config)

    @property
    def frames(self) -> list[int]:
        """Log-mel frames T of each view of a step; local ones are the last."""
        local = self.config.views.local
        return [self.config.crop_frames] * (self.views - local) + [self.config.local_frames] * local

    @property
    def signs_of_collapse(self) -> list[Signs]:
        """Those among the method's own submodules."""
        return [module for module in self.children() if isinstance(module, Signs)]

    def begin_epoch(self, epoch: int, passes: Passes) -> Log:
        for signs in self.signs_of_collapse:
            signs.begin_epoch()
        return {}

    def after_step(self, clip_ids: Tensor) -> None:
        for signs in self.signs_of_collapse:
            signs.after_step()

    def end_epoch(self) -> Log:
        return {name: value for signs in self.signs_of_collapse for name, value in signs.log().items()}

    def summary(self, log: Log) -> str:
        return "".join(signs.summary(log) for signs in self.signs_of_collapse)

    def description(self) -> str:
        """For the first line that a run prints."""
        return self.title

    def cluster_sizes(self) -> Tensor | None:
        """(K,) clips in each cluster, of a method that has clusters."""
        return None

    def facts(self) -> dict[str, Any]:
        """The method's entries in result.json."""
        return {}


def check_batch(config: Config, clips: int, what: str) -> None:
    """Raises UserError for batches of less than LEAST_CLIPS of `clips` clips; `what` the method does with them."""
    if clips < LEAST_CLIPS:
        raise UserError(
            f"the train split has {clips} clips: {config.method.name} {what}, and wants at least {LEAST_CLIPS}; use a "
            "larger set, or --method byol"
        )
    size = clips if config.train.batch_size == "auto" else min(config.train.batch_size, clips)
    if size // config.train.accumulate < LEAST_CLIPS:
        parts = "" if config.train.accumulate == 1 else f" in {config.train.accumulate} parts"
        raise UserError(
            f"a batch of {size} clips{parts}: {config.method.name} {what}, and wants at least {LEAST_CLIPS}; use a "
            "larger --set train.batch_size, or --method moco or byol"
        )
