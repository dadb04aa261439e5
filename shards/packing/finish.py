"""All shards are there -> numbers, clips table, rejected.csv, manifest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, decode_clip
from unfused_fast.shards.packing.building import Building
from unfused_fast.shards.packing.journal import DoneShard, Journal
from unfused_fast.shards.packing.options import PackOptions, Request
from unfused_fast.shards.packing.rejections import by_reason, summary, write_rejected
from unfused_fast.shards.packing.upload import UploadedSet
from unfused_fast.shards.sets.shard_files import index_path, read_index, read_members, renumber
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
"""Clips that `statistics` gets. Ours: the first ids are a random sample, and so many fix a log-mel's mean and std well
beyond what training notices."""


@dataclass(frozen=True)
class PackResult:
    """What pack() or merge() did."""

    shard_set: ShardSet
    """Of a set behind a URL there are only the manifest and the table; local_sets.local_set() fetches the rest."""
    packed: int
    """Clips in the set."""
    rejected: dict[str, int]
    """Rows of rejected.csv by reason, most frequent first."""
    audio_seconds: float
    """Of the clips."""
    shard_bytes: int
    """Size of tars and indexes."""
    wall_seconds: float
    shards_made: int
    """In this run; the others were there."""
    shards: int


class Sender:
    """Sends shards to where the set is made, in order, and takes them from the disk."""

    def __init__(self, journal: Journal, remote: UploadedSet) -> None:
        """Of the set whose plan is in the journal."""
        self._journal, self._remote, self._waiting = journal, remote, deque(journal.plan().shards)
        self._first_id = self._measured = 0

    def advance(self) -> None:
        """Sends all whose numbers are final, because every shard before them is there.

        The first ones stay on the disk too, for `statistics`.
        """
        while self._waiting and (done := self._journal.done(self._waiting[0])) is not None:
            if done.clips.num_rows:
                _number(self._journal, done, self._first_id)
                self._remote.send(self._journal, done)
                if _split(done) != STATISTICS_SPLIT or self._measured >= STATISTICS_CLIPS:
                    self._journal.drop(done.name)
                else:
                    self._measured += done.clips.num_rows
            self._first_id += done.clips.num_rows
            self._waiting.popleft()


def finish(
    build: Building,
    journal: Journal,
    options: PackOptions,
    request: Request,
    statistics: Statistics | None,
    remote: UploadedSet | None = None,
) -> ShardSet:
    """Numbers the clips of all shards in order, and writes what makes a set of them, here or at `remote`.

    Raises:
        UserError: there is not one clip.
    """
    if remote is not None:
        Sender(journal, remote).advance()
    plan = journal.plan()
    shards: list[DoneShard] = []
    rejected = list(plan.rejected)
    first_id = 0
    for name in plan.shards:
        done = journal.done(name)
        assert done is not None, f"{name} is not there"
        rejected += done.rejected
        if done.clips.num_rows:
            _number(journal, done, first_id)
            shards.append(done)
        first_id += done.clips.num_rows
    if not first_id:
        if remote is not None:
            remote.release()
        build.discard()
        raise UserError(
            f"{summary(rejected, request.values['files'])}; nothing was written: name audio that libsndfile reads"
        )
    clips = numbered(pa.concat_tables([shard.clips for shard in shards]).cast(DONE_SCHEMA).combine_chunks())
    splits = {}
    for split in dict.fromkeys(_split(shard) for shard in shards):
        of_split = [shard for shard in shards if _split(shard) == split]
        samples = sum(pc.sum(shard.clips["samples"]).as_py() for shard in of_split)
        names = tuple(f"{shard.name}.tar" for shard in of_split)
        splits[split] = SplitInfo(names, sum(shard.clips.num_rows for shard in of_split), samples / SAMPLE_RATE_HZ)
    write_rejected(build.folder, rejected)
    for name, text in plan.files.items():
        (build.folder / name).write_text(text, encoding="utf-8", newline="\n")
    write_clips(build.folder, clips)
    log_mel = None
    if statistics is not None and STATISTICS_SPLIT in splits:
        first_clips = stored_clips(build.folder, splits[STATISTICS_SPLIT].shards, options.codec)
        log_mel = dict(statistics(islice(first_clips, STATISTICS_CLIPS)))
    manifest = Manifest(
        codec=options.codec,
        max_seconds=float(options.max_seconds),
        seed=options.seed,
        splits=splits,
        label_names=plan.label_names,
        digest=clips_digest(clips, plan.label_names),
        rejected=len(rejected),
        log_mel=log_mel,
        written_by=f"unfused-fast {__version__}",
        request=request.digest,
        dataset=request.values["dataset"],
    )
    build.finish(MANIFEST, manifest.to_json())
    if remote is not None:
        remote.complete(journal, [shard.name for shard in shards])
    journal.end()
    return ShardSet(build.out, manifest, clips)


def result_of(
    shard_set: ShardSet,
    directory: Path,
    rejected: dict[str, int],
    shards_made: int,
    wall_seconds: float,
    remote: UploadedSet | None = None,
) -> PackResult:
    """The numbers of a set that lies in `directory`, or at `remote`."""
    splits = shard_set.manifest.splits.values()
    tars = [directory / name for info in splits for name in info.shards]
    return PackResult(
        shard_set=ShardSet(directory, shard_set.manifest, shard_set.clips),
        packed=shard_set.clips.num_rows,
        rejected=rejected,
        audio_seconds=sum(info.seconds for info in splits),
        shard_bytes=sum(path.stat().st_size for tar in tars for path in (tar, index_path(tar)))
        if remote is None
        else remote.shard_bytes,
        wall_seconds=wall_seconds,
        shards_made=shards_made,
        shards=len(tars),
    )


def rejected_reasons(journal: Journal) -> dict[str, int]:
    """Rejections so far by reason, most frequent first."""
    plan = journal.plan()
    done = (journal.done(name) for name in plan.shards)
    return by_reason([*plan.rejected, *(row for shard in done if shard is not None for row in shard.rejected)])


def _number(journal: Journal, shard: DoneShard, first_id: int) -> None:
    """Gives a shard's clips the ids from `first_id` on, unless they have them."""
    if shard.first_id != first_id:
        renumber(journal.set_folder / f"{shard.name}.tar", first_id)
        journal.note(DoneShard(shard.name, first_id, shard.clips, shard.rejected, shard.bytes))


def _split(shard: DoneShard) -> str:
    return str(shard.clips["split"][0].as_py())


def stored_clips(folder: Path, tars: tuple[str, ...], codec: str) -> Iterator[NDArray[np.int16]]:
    """Samples of the clips of some tars, as they were written."""
    for name in tars:
        for contents in read_members(folder / name, read_index(index_path(folder / name))):
            yield decode_clip(contents[codec])
