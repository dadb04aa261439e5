"""Which clips of a shard set cannot be read or decoded, found by reading each one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.data.order import Line, Order, Reading
from unfused_fast.data.reading_errors import readable
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.sets.shard_files import clip_key

AHEAD = 8
"""Batches, from the one at hand on, in which the clip lies that stops DALI. Ours: its queues hold fewer."""


class DamagedClip(NamedTuple):
    """A clip that cannot be read or decoded."""

    clip_id: int
    shard: str
    reason: str

    def __str__(self) -> str:
        return f"clip {clip_key(self.clip_id)} of {self.shard}: {self.reason}"


def damage(tar: Path, line: Line, codec: str, samples: int) -> str | None:
    """Why the audio or the id of a clip cannot be had; None: they can.

    Args:
        samples: that the clip should have.
    """
    words = line.text.split(" ")
    places = {words[at]: (int(words[at + 1]), int(words[at + 2])) for at in range(0, len(words), 4)}
    found = dict[str, bytes]()
    try:
        with tar.open("rb") as file:
            for member in (codec, "index"):
                if member not in places:
                    return f"it has no .{member} member"
                offset, size = places[member]
                if os.fstat(file.fileno()).st_size < offset + size:
                    return f"the shard ends before byte {offset + size}"
                file.seek(offset)
                found[member] = file.read(size)
        pcm = decode_clip(found[codec])
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    if len(pcm) != samples:
        return f"{len(pcm)} samples, but the clips table has {samples}"
    return None if found["index"] == clip_key(line.clip_id).encode() else "its .index member is another"


def damaged_clips(
    reading: Reading, rows: slice, codec: str, samples: NDArray[np.int64], known: frozenset[int]
) -> list[DamagedClip]:
    """Those near a batch that DALI could not give, and those of all shards that are cut short or gone.

    Args:
        rows: of the batch, among the clips that are read.
        samples: of each clip of the set.
        known: ids of clips that are not looked at again.
    """
    count = len(reading.clip_ids)
    near = set(((rows.start + np.arange(AHEAD * (rows.stop - rows.start))) % count).tolist())
    short = {tar for tar in {tar for tar, _ in reading.order} if not readable(tar)}
    found = dict[int, DamagedClip]()
    for row, (tar, line) in enumerate(_lines(reading.order)):
        if (row in near or tar in short) and line.clip_id not in known and line.clip_id not in found:
            reason = damage(tar, line, codec, int(samples[line.clip_id]))
            if reason is not None:
                found[line.clip_id] = DamagedClip(line.clip_id, tar.name, " ".join(reason.split())[:200])
    return list(found.values())


def with_stand_in(order: Order, codec: str, samples: NDArray[np.int64], silent: frozenset[int]) -> Order | None:
    """The same order where a sound clip is read in place of each silent one; None: there is no sound one."""
    sound = (
        (tar, line)
        for tar, line in _lines(order)
        if line.clip_id not in silent and damage(tar, line, codec, int(samples[line.clip_id])) is None
    )
    stand_in = next(sound, None)
    if stand_in is None:
        return None
    changed = Order()
    for tar, line in _lines(order):
        there, read = stand_in if line.clip_id in silent else (tar, line)
        if not changed or changed[-1][0] != there:
            changed.append((there, []))
        changed[-1][1].append(read)
    return changed


def _lines(order: Order) -> Iterator[tuple[Path, Line]]:
    return ((tar, line) for tar, lines in order for line in lines)
