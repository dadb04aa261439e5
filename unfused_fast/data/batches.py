"""What training is fed with.   B clips in a batch, N clips of the split, F mel bins, T frames, V views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import Config
from unfused_fast.data.skipped_clips import SkippedClips
from unfused_fast.distributed import Share


class Batch(NamedTuple):
    """What one step gets; every tensor on the device."""

    clip_ids: Tensor
    """(B,) int64: rows of the clips table, and of the memory bank."""
    views: tuple[Tensor, ...]
    """V normalised log-mels (B, 1, F, T)."""
    frame_counts: Tensor | None
    """(B,) int64 valid frames of whole clips; None for training crops, which all have T."""
    counters: Tensor
    """(B,) int64 what random numbers of views are counted by: the clip id, raised by the number of clips of the set for
    each time that the clip was drawn before in the epoch.
    """


def empty_batch(config: Config, views: int, device: torch.device) -> Batch:
    """Of a rank that has no clip of an epoch's last batch."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    view = torch.zeros(0, 1, config.frontend.n_mels, config.crop_frames, device=device)
    return Batch(none, (view,) * views, None, none)


class Batches(Protocol):
    """One split of a shard set in batches, of which a rank has its share: read from the shards (Loader), or held ready
    (resident.py).
    """

    @property
    def clips(self) -> int:
        """Clips of the split, on all ranks."""

    @property
    def batch_size(self) -> int:
        """Clips of a full batch, on all ranks."""

    @property
    def share(self) -> Share:
        """This rank's part of each batch."""

    @property
    def device(self) -> torch.device:
        """Where batches lie."""

    @property
    def full_batches(self) -> int:
        """As Loader.full_batches."""

    @property
    def skipped(self) -> SkippedClips:
        """Clips that could not be read and count as silence."""

    @property
    def start_seconds(self) -> float:
        """Seconds spent before the first batch can be asked for: reading and computing what is held ready."""

    def epoch(
        self,
        epoch: int,
        views: int = 2,
        *,
        masks: bool = True,
        clusters: NDArray[np.int64] | None = None,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """As Loader.epoch: the same ids in the same order, the same crops and masks."""

    def whole_clips(self) -> Iterator[Batch]:
        """As Loader.whole_clips."""
