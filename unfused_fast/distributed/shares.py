"""Which clips of a batch each rank takes, when a batch is shared by several processes."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Share(NamedTuple):
    """A rank's part of every batch: after the ranks before it, as evenly as whole clips allow.

    Ours: a batch of an epoch holds the same clips, in the same order, on any number of ranks.
    """

    rank: int = 0
    world_size: int = 1

    def of(self, clips: int) -> slice:
        """The rank's part of a batch of so many clips."""
        return slice(self.rank * clips // self.world_size, (self.rank + 1) * clips // self.world_size)

    def sizes(self, clips: int) -> list[int]:
        """How many clips of a batch of so many each rank has."""
        parts = [Share(rank, self.world_size).of(clips) for rank in range(self.world_size)]
        return [part.stop - part.start for part in parts]

    def positions(self, clips: int, batch_size: int) -> NDArray[np.int64]:
        """The rank's positions in an epoch of so many clips, whose last batch holds what is left."""
        begins = range(0, clips, batch_size)
        parts = [(begin, self.of(min(batch_size, clips - begin))) for begin in begins]
        return np.concatenate(
            [np.arange(0), *(np.arange(begin + part.start, begin + part.stop) for begin, part in parts)]
        )

    def batches(self, clips: int, batch_size: int) -> list[slice]:
        """Of the rank's clips of such an epoch, in order, those of each batch; of the last batch it may have none."""
        parts = [self.of(min(batch_size, clips - begin)) for begin in range(0, clips, batch_size)]
        ends = np.cumsum([0, *(part.stop - part.start for part in parts)]).tolist()
        return [slice(begin, stop) for begin, stop in pairwise(ends)]


WHOLE = Share()
"""Of a process that works alone."""
