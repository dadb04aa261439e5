"""Which clips of a batch each rank takes, when a batch is shared by several processes."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Share(NamedTuple):
    """A rank's contiguous part of every batch, in order of ranks; sizes differ by at most one clip.

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
        """The rank's positions in an epoch of so many clips, whose last batch holds the rest."""
        begins = range(0, clips, batch_size)
        parts = [(begin, self.of(min(batch_size, clips - begin))) for begin in begins]
        return np.concatenate(
            [np.arange(0), *(np.arange(begin + part.start, begin + part.stop) for begin, part in parts)]
        )

    def batches(self, clips: int, batch_size: int) -> list[slice]:
        """For each batch, its slice of the rank's clips of such an epoch; the last one may be empty."""
        parts = [self.of(min(batch_size, clips - begin)) for begin in range(0, clips, batch_size)]
        ends = np.cumsum([0, *(part.stop - part.start for part in parts)]).tolist()
        return [slice(begin, stop) for begin, stop in pairwise(ends)]


WHOLE = Share()
"""Of a single process."""
