"""Recordings for `embed`, in blocks and batches, decoded in worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unfused_fast.embedding.pieces import ClipPiece, Cutting, in_batches
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import LONGEST_FILE_SECONDS
from unfused_fast.shards.packing.options import PackOptions
from unfused_fast.shards.packing.pack_shard import DecodeJob, ProbeJob
from unfused_fast.shards.packing.workers import At, Bad, Pool
from unfused_fast.shards.sources.location import Location
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

Pcm = NDArray[np.int16]
Item = TypeVar("Item")

BLOCK_FILES = 256
"""Files whose headers are read together, and whose embeddings are saved together. Ours: a few seconds of work, the most
that Ctrl-C loses; and enough to find clips of similar length."""
BLOCK_SECONDS = 3600.0
"""Most audio of a block of more than one file."""
READ_AHEAD = 16
"""Decoded batches in the queue of the encoder: at most 5 MB each; those of several files on a CPU half a MB."""


class FilePiece(NamedTuple):
    """A piece of a recording to decode."""

    row: int
    location: Location
    file_frames: int
    """Of the file, at its own rate."""
    piece: ClipPiece
    place: int
    """Rows of its block before it."""


@dataclass(frozen=True, slots=True)
class ReadJob:
    """A batch to decode."""

    block: int
    """First row of its block."""
    pieces: Sequence[FilePiece]

    def answer(self, bad: Bad, at: At) -> list[Pcm | Rejected]:
        """As DecodeJob's."""
        return DecodeJob(self._read()).answer(bad, at)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process gets a DecodeJob: importing this module there would import torch, with the whole wing."""
        return DecodeJob, (self._read(),)

    def _read(self) -> list[tuple[Location, int, int, int]]:
        return [(each.location, each.file_frames, each.piece.start, each.piece.stop) for each in self.pieces]


@dataclass
class Block:
    """Files that are saved together."""

    first: int
    """Row of the first."""
    samples: dict[int, int] = field(default_factory=dict)
    """Row -> samples at 16 kHz, of files with a usable header."""
    pieces: dict[int, list[FilePiece]] = field(default_factory=dict)
    rejected: dict[int, Rejected] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    """Row -> rows of the result: steps of the encoder, or 1."""
    waiting: int = 0
    """Batches that are not embedded yet."""

    def jobs(self, most_frames: int) -> list[ReadJob]:
        """Whole recordings by length, up to `most_frames` frames at once; then the pieces of each long one, in order,
        one per batch.
        """
        whole = [own[0] for own in self.pieces.values() if len(own) == 1]
        batches = [
            [whole[number] for number in batch] for batch in in_batches([each.piece for each in whole], most_frames)
        ]
        batches += [[each] for own in self.pieces.values() if len(own) > 1 for each in own]
        self.waiting = len(batches)
        return [ReadJob(self.first, batch) for batch in batches]


def blocks_of(
    rows: Sequence[SourceRow], groups: Sequence[range], cutting: Cutting, frames: bool, headers: Pool
) -> Iterator[Block]:
    """The rows of some groups, each in blocks of at most BLOCK_SECONDS, or of one file. `headers` reads headers."""
    for some in groups:
        ((_, answer),) = headers.answers([ProbeJob(some[0], [rows[row].path for row in some], LONGEST_FILE_SECONDS)])
        block = Block(some[0])
        for row, (found, _) in zip(some, answer, strict=True):
            samples = 0 if isinstance(found, Rejected) else found.samples
            if block.samples and sum(block.samples.values()) + samples > BLOCK_SECONDS * SAMPLE_RATE_HZ:
                yield block
                block = Block(row)
            if isinstance(found, Rejected):
                block.rejected[row] = found
            elif (short := too_short(samples)) is not None:
                block.rejected[row] = short
            else:
                place = sum(block.counts.values())
                block.samples[row], block.pieces[row] = samples, []
                for piece in cutting.pieces(samples):
                    block.pieces[row].append(FilePiece(row, rows[row].path, found.frames, piece, place))
                    place += piece.steps if frames else 0
                block.counts[row] = cutting.steps(samples) if frames else 1
        yield block


def too_short(samples: int) -> Rejected | None:
    """Why a recording of so few samples at 16 kHz is not embedded, as `shard` has it; None: it is long enough."""
    if samples >= PackOptions().minimum_samples:
        return None
    return Rejected(Reason.TOO_SHORT, f"{samples / SAMPLE_RATE_HZ:.3f} s")


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items of an iterator, fetched in a thread, at most READ_AHEAD ahead of their use.

    Ours: worker processes get their next jobs while the encoder runs.
    """
    end = object()
    thread = ThreadPoolExecutor(1)
    waiting: deque[Future[Any]] = deque(thread.submit(next, items, end) for _ in range(READ_AHEAD))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
