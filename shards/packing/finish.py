"""Shards -> a set: ids for their clips, clips table, rejected.csv, manifest."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, decode_clip
from unfused_fast.shards.packing.building import complete, discard
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.options import digest_of
from unfused_fast.shards.packing.pack_shard import DoneShard, Rejection
from unfused_fast.shards.packing.rejections import by_reason, nothing_usable, write_rejected
from unfused_fast.shards.packing.upload import RemoteSet
from unfused_fast.shards.sets.shard_files import clip_key, index_path, read_index, read_members, renumber
from unfused_fast.shards.sets.table import (
    DONE_SCHEMA,
    MANIFEST,
    Manifest,
    ShardSet,
    SplitInfo,
    clips_digest,
    numbered,
    write_clips,
)

Statistics = Callable[[Iterator[NDArray[np.int16]]], Mapping[str, float]]

STATISTICS_SPLIT, STATISTICS_CLIPS = "train", 512
"""Clips that `statistics` gets. Ours: the first ids are a random sample, and so many give a log-mel's mean and std
more precisely than training needs."""


@dataclass(frozen=True)
class PackResult:
    """What pack() or merge() did."""

    shard_set: ShardSet
    """Of a set behind a URL there are only the manifest and the table; download.local_set() fetches the rest."""
    rejected: dict[str, int]
    """Rows of rejected.csv by reason, most frequent first."""
    shard_bytes: int
    """Size of tars and indexes."""
    shards_made: int
    """In this run; the others were there."""
    wall_seconds: float

    @property
    def packed(self) -> int:
        """Clips in the set."""
        return int(self.shard_set.clips.num_rows)

    @property
    def shards(self) -> int:
        """Tars of the set."""
        return sum(len(info.shards) for info in self.shard_set.manifest.splits.values())


@dataclass(frozen=True)
class Contents:
    """What a set, or a part of one, is made of, once all headers are read."""

    shards: list[str]
    """Names, in order."""
    label_names: list[str]
    rejected: list[Rejection]
    """By their headers."""
    files: dict[str, str]
    """Name -> text of what is written next to the shards."""


class Numbering:
    """Gives clips their ids, shard by shard in order, and uploads shards of a set behind a URL.

    Ours: a worker numbers the clips of its shard as if nothing before them were rejected; where something was, the ids
    are written over in place, so that all shards can be made at the same time and ids have no gaps.
    """

    def __init__(self, journal: Journal, names: list[str], remote: RemoteSet | None) -> None:
        """Of all shards of the set, in order."""
        self._journal, self._remote, self._waiting = journal, remote, deque(names)
        self._clips = self._measured = 0
        self.numbered: list[DoneShard] = []

    def advance(self) -> None:
        """Numbers all shards up to the first missing one, and uploads them.

        The first ones that are uploaded stay on the disk too, for `statistics`.
        """
        while self._waiting and (done := self._journal.done(self._waiting[0])) is not None:
            if done.clips.num_rows and self._journal.sent(done.name) is None:
                self._number(self._journal.set_folder / f"{done.name}.tar")
            if done.clips.num_rows and self._remote is not None:
                self._remote.send(self._journal, done)
                if _split(done) != STATISTICS_SPLIT or self._measured >= STATISTICS_CLIPS:
                    self._journal.drop(done.name)
                else:
                    self._measured += done.clips.num_rows
            self._clips += done.clips.num_rows
            self.numbered.append(done)
            self._waiting.popleft()

    def _number(self, tar: Path) -> None:
        """Gives a shard's clips the next ids, unless they already have them."""
        if read_index(index_path(tar))[0][0].name.partition(".")[0] == clip_key(self._clips):
            return
        if tar.stat().st_nlink > 1:  # also the file of a part, which must not change
            copy = self._journal.temporary(tar.stem)
            shutil.copyfile(tar, copy)
            copy.replace(tar)
        renumber(tar, self._clips)


def finish(
    journal: Journal,
    out: Path,
    contents: Contents,
    request: Mapping[str, Any],
    numbering: Numbering,
    statistics: Statistics | None,
    remote: RemoteSet | None,
    made: int,
    started: float,
) -> PackResult:
    """Writes what makes a set of the shards, here or at `remote`.

    Args:
        out: where the set will be.
        made: shards made in this run, since `started` (time.perf_counter()).

    Raises:
        UserError: no file was usable.
    """
    numbering.advance()
    assert len(numbering.numbered) == len(contents.shards), "a shard is missing"
    folder, shards = journal.set_folder, [shard for shard in numbering.numbered if shard.clips.num_rows]
    rejected = contents.rejected + [row for shard in numbering.numbered for row in shard.rejected]
    if not shards:
        if remote is not None:
            remote.release()
        discard(folder)
        raise nothing_usable(rejected, request["files"])
    clips = numbered(pa.concat_tables([shard.clips for shard in shards]).cast(DONE_SCHEMA).combine_chunks())
    splits = {}
    for split in dict.fromkeys(map(_split, shards)):
        of_split = [shard for shard in shards if _split(shard) == split]
        samples = sum(pc.sum(shard.clips["samples"]).as_py() for shard in of_split)
        names = tuple(f"{shard.name}.tar" for shard in of_split)
        splits[split] = SplitInfo(names, sum(shard.clips.num_rows for shard in of_split), samples / SAMPLE_RATE_HZ)
    write_rejected(folder, rejected)
    for name, text in contents.files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    write_clips(folder, clips)
    log_mel = None
    if statistics is not None and STATISTICS_SPLIT in splits:
        first_clips = stored_clips(folder, splits[STATISTICS_SPLIT].shards, request["codec"])
        log_mel = dict(statistics(islice(first_clips, STATISTICS_CLIPS)))
    manifest = Manifest(
        codec=request["codec"],
        max_seconds=request["max_seconds"],
        seed=request["seed"],
        splits=splits,
        label_names=tuple(contents.label_names),
        digest=clips_digest(clips, contents.label_names),
        rejected=len(rejected),
        log_mel=log_mel,
        written_by=f"unfused-fast {__version__}",
        request=digest_of(request),
        dataset=request["dataset"],
    )
    complete(folder, MANIFEST, manifest.to_json())
    if remote is not None:
        remote.complete(journal, [shard.name for shard in shards])
    journal.end()
    size = sum(shard.bytes for shard in shards)
    seconds = time.perf_counter() - started
    return PackResult(ShardSet(out, manifest, clips), by_reason(rejected), size, made, seconds)


def _split(shard: DoneShard) -> str:
    return str(shard.clips["split"][0].as_py())


def stored_clips(folder: Path, tars: tuple[str, ...], codec: str) -> Iterator[NDArray[np.int16]]:
    """Samples of the clips of some tars, as they were written."""
    for name in tars:
        for contents in read_members(folder / name, read_index(index_path(folder / name))):
            yield decode_clip(contents[codec])
