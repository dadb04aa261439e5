"""Which rows of a set each of several processes holds."""

from __future__ import annotations

from typing import NamedTuple

from unfused_fast.errors import UserError


class Share(NamedTuple):
    """A rank's contiguous part of the rows of a set, in order of ranks; sizes differ by at most one block of rows.

    Ours: a rank trains on clips that it holds, log-mels, rows of the memory bank and mixup memory, so that nothing of
    the size of the set is on every rank.
    """

    rank: int = 0
    world_size: int = 1
    block: int = 1
    """Neighbouring rows that one rank has all of; a rank may have none where blocks are fewer than ranks."""

    def of(self, rows: int) -> slice:
        """The rank's part of so many rows."""
        blocks = -(-rows // self.block)
        first, last = (number * blocks // self.world_size for number in (self.rank, self.rank + 1))
        return slice(min(first * self.block, rows), min(last * self.block, rows))

    def parts(self, rows: int) -> list[slice]:
        """The part of each rank of so many rows."""
        return [self._replace(rank=rank).of(rows) for rank in range(self.world_size)]

    def sizes(self, rows: int) -> list[int]:
        """How many of so many rows each rank has."""
        return [part.stop - part.start for part in self.parts(rows)]

    def of_partitions(self, partitions: int) -> range:
        """The rank's part of the partitions of a set. Their rows are `of` the set's rows: partition p of V has those
        from p * N // V on. Raises UserError unless every rank has equally many.
        """
        ranks = self.world_size
        if partitions % ranks:
            fitting = [number for number in range(1, partitions + 1) if partitions % number == 0]
            below = [number for number in fitting if number < ranks][-1:]
            nearest = " or ".join(map(str, below + [number for number in fitting if number > ranks][:1]))
            raise UserError(
                f"{ranks} processes cannot share data.partitions = {partitions} evenly; use {nearest} processes, or "
                f"--set data.partitions={-(-partitions // ranks) * ranks}, which changes the batches"
            )
        own = self.of(partitions)
        return range(own.start, own.stop)


WHOLE = Share()
"""Of a single process."""
