"""Recordings for `embed`, decoded in worker processes, in batches of similar length. Imports no torch."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unfused_fast.embedding.pieces import ClipPiece, Cutting, in_batches
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import LONGEST_FILE_SECONDS, Probe, decode_samples
from unfused_fast.shards.packing.options import PackOptions
from unfused_fast.shards.packing.pack_shard import ProbeJob
from unfused_fast.shards.packing.workers import At, Bad, Pool
from unfused_fast.shards.sources.location import Location
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

Pcm = NDArray[np.int16]
Item = TypeVar("Item")

BLOCK_FILES = 256
"""Files whose headers are read together, and whose embeddings are saved together. Ours: seconds of work, which is what
Ctrl-C loses; and enough to find clips of similar length."""
BLOCK_SECONDS = 3600.0
"""Most audio of a block of more than one file."""
READ_AHEAD = 4
"""Decoded batches that wait for the encoder: 5 MB each, for the longest."""

JOIN_SECONDS = 2.0
"""How long an end waits for the next batch. Ours: a hung decoder is killed with its process after it."""


class Part(NamedTuple):
    """A piece of a recording to decode."""

    row: int
    """Number of its row."""
    location: Location
    file_frames: int
    """Of the file, at its own rate."""
    piece: ClipPiece


@dataclass(frozen=True, slots=True)
class ReadJob:
    """A batch to decode."""

    number: int
    """Of the job, from 0."""
    parts: Sequence[Part]

    def answer(self, bad: Bad, at: At) -> list[Pcm | Rejected]:
        """The samples [start, stop) of each part's piece, at 16 kHz, or why they cannot be had."""
        answers: list[Pcm | Rejected] = []
        for item, part in enumerate(self.parts):
            at(item)
            try:
                if item in bad:
                    raise bad[item]
                answers.append(decode_samples(part.location, part.file_frames, part.piece.start, part.piece.stop))
            except Rejected as rejected:
                answers.append(rejected)
        return answers


@dataclass
class Block:
    """Files that are saved together."""

    first: int
    """Row of the first, and `stop` the row after the last."""
    stop: int
    samples: dict[int, int]
    """Row -> samples at 16 kHz, of the usable ones."""
    rejected: dict[int, Rejected]
    pieces: dict[int, int]
    """Row -> pieces."""
    end: int = 0
    """Number of the job after its last."""


@dataclass
class Reader:
    """Gives the batches of all rows, in no fixed order, and tells the blocks that they belong to."""

    rows: Sequence[SourceRow]
    cutting: Cutting
    headers: Pool
    """Reads headers."""
    blocks: deque[Block] = field(default_factory=deque)
    """In order of rows; filled before the jobs of a block are given out. Who commits a block takes it out."""

    def jobs(self, first_row: int) -> Iterator[ReadJob]:
        """The jobs of all blocks from a row on."""
        number = 0
        for first in range(first_row, len(self.rows), BLOCK_FILES):
            rows = range(first, min(first + BLOCK_FILES, len(self.rows)))
            for block, batches in self._cut(rows, self._probes(rows)):
                block.end = number + len(batches)
                self.blocks.append(block)
                for parts in batches:
                    yield ReadJob(number, parts)
                    number += 1

    def _probes(self, rows: range) -> list[Probe | Rejected]:
        job = ProbeJob(rows.start, [self.rows[row].path for row in rows], LONGEST_FILE_SECONDS)
        (answer,) = (found for _, found in self.headers.answers([job]))
        return answer

    def _cut(self, rows: range, probes: Sequence[Probe | Rejected]) -> Iterator[tuple[Block, list[list[Part]]]]:
        """Blocks of at most BLOCK_SECONDS, or of one file."""
        block, seconds = Block(rows.start, rows.start, {}, {}, {}), 0.0
        parts: dict[int, list[Part]] = {}
        shortest = PackOptions().minimum_samples
        for row, found in zip(rows, probes, strict=True):
            samples = found.samples if isinstance(found, Probe) else 0
            if parts and seconds + samples / SAMPLE_RATE_HZ > BLOCK_SECONDS:
                yield block, _batches(parts)
                block, seconds, parts = Block(row, row, {}, {}, {}), 0.0, {}
            block.stop = row + 1
            if isinstance(found, Rejected):
                block.rejected[row] = found
            elif samples < shortest:
                block.rejected[row] = Rejected(Reason.TOO_SHORT, f"{samples / SAMPLE_RATE_HZ:.3f} s")
            else:
                pieces, location = self.cutting.pieces(samples), self.rows[row].path
                parts[row] = [Part(row, location, found.frames, piece) for piece in pieces]
                block.samples[row], block.pieces[row] = samples, len(pieces)
                seconds += samples / SAMPLE_RATE_HZ
        yield block, _batches(parts)


def _batches(parts: dict[int, list[Part]]) -> list[list[Part]]:
    """Whole recordings by length; then the pieces of each long one, in order, each by itself."""
    whole = [own[0] for own in parts.values() if len(own) == 1]
    batches = [[whole[number] for number in batch] for batch in in_batches([part.piece for part in whole])]
    return batches + [[part] for own in parts.values() if len(own) > 1 for part in own]


def ahead(items: Iterator[Item], depth: int = READ_AHEAD) -> Iterator[Item]:
    """The items of an iterator, drawn in a thread, at most `depth` ahead; its errors are raised here.

    Ours: worker processes get their next jobs while the encoder works.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
        except BaseException as error:  # the caller raises it
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(JOIN_SECONDS)
