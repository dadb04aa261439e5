"""Shards -> a set: ids for their clips, clips table, rejected.csv, manifest."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.errors import UserError, cause
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, decode_clip
from unfused_fast.shards.packing.building import beside, complete, discard, is_complete, tidy, to_disk
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.options import digest_of
from unfused_fast.shards.packing.pack_shard import DoneShard, Rejection
from unfused_fast.shards.packing.rejections import by_reason, nothing_usable, read_reasons, write_rejected
from unfused_fast.shards.packing.upload import RemoteSet
from unfused_fast.shards.sets.shard_files import clip_key, index_path, read_index, read_members, renumber
from unfused_fast.shards.sets.table import (
    DONE_SCHEMA,
    MANIFEST,
    PART,
    Manifest,
    ShardSet,
    SplitInfo,
    clips_digest,
    numbered,
    open_shards,
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
    """Of a set behind a URL there are only the manifest and the table; download.local_set() fetches the rest. Of a part
    of a set both are of its own shards, and on no disk."""
    rejected: dict[str, int]
    """Rows of rejected.csv by reason, most frequent first; files rejected by their headers count in every part."""
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
    plan: str
    """Its Plan.digest()."""


class Assembly:
    """Shards on their way to a set: their clips get their ids, shard by shard in order, and are sent to a URL.

    Ours: a worker numbers the clips of its shard as if nothing before them were rejected; where something was, the ids
    are written over in place, so that all shards can be made at the same time and ids have no gaps.
    """

    def __init__(self, journal: Journal, contents: Contents, remote: RemoteSet | None) -> None:
        """Of the set in the making that `journal` is of."""
        self.journal, self.contents, self._remote = journal, contents, remote
        self._waiting, self._made = deque(contents.shards), dict[str, DoneShard]()
        self._clips = self._measured = 0

    def add(self, done: DoneShard) -> None:
        """A shard that is there: numbers all shards up to the first missing one, and uploads them.

        The first ones that are uploaded stay on the disk too, for `statistics`. The shards of a part get no numbers.
        Ours: a file is flushed now, while others are made, so that complete() does not wait for the whole set.
        """
        self._made[done.name] = done
        if self._remote is None and done.bytes:
            for path in self.journal.files(done.name):
                to_disk(path)
        while self.journal.request["part"] is None and self._waiting and self._waiting[0] in self._made:
            shard = self._made[self._waiting[0]]
            if shard.clips.num_rows:
                self._place(shard)
            self._clips += shard.clips.num_rows
            self._waiting.popleft()  # only now: what could not be sent is tried again

    def has_moved(self, name: str) -> bool:
        """Whether a shard, all before which are added, was sent to the URL with other ids than its clips have now."""
        sent = self.journal.sent.get(name)
        return sent is not None and sent.first_id != self._clips

    def _place(self, shard: DoneShard) -> None:
        tar, index = self.journal.files(shard.name)
        there = shard.name in self.journal.sent
        if self._remote is not None and self.has_moved(shard.name):
            for name in self._waiting:
                self.journal.forget_sent(name)
            raise UserError(
                f"{self._remote.shown}: {tar.name} was sent with other clip ids, because files before its own have "
                "changed since; run the same command again, which makes this shard and all later ones again"
            )
        if not there and read_index(index)[0][0].name.partition(".")[0] != clip_key(self._clips):
            if tar.stat().st_nlink > 1:  # also the file of a part, which must not change
                copy = self.journal.temporary(tar.stem)
                shutil.copyfile(tar, copy)
                copy.replace(tar)
            renumber(tar, self._clips)
        if self._remote is None:
            return
        if not there:
            self._remote.send(self.journal, shard.name, self._clips)
        if _split(shard) == STATISTICS_SPLIT and self._measured < STATISTICS_CLIPS:
            self._measured += shard.clips.num_rows
        else:
            tar.unlink(missing_ok=True)
            index.unlink(missing_ok=True)

    def finish(self, out: Path, statistics: Statistics | None, made: int, started: float) -> PackResult:
        """Writes what makes a set, or a part of one, of the shards, here or at the URL.

        Args:
            out: where the set will be.
            made: shards made in this run, since `started` (time.perf_counter()).

        Raises:
            UserError: no file was usable.
        """
        journal, contents, folder = self.journal, self.contents, self.journal.set_folder
        shards = [self._made[name] for name in contents.shards]
        result = _result(out, journal.request, contents, shards, made, started)
        if journal.request["part"] is not None:
            about = {"request": dict(journal.request), "contents": asdict(contents)}
            complete(folder, PART, json.dumps(about, indent=2, sort_keys=True) + "\n")
            return result
        rejected = contents.rejected + [row for shard in shards for row in shard.rejected]
        manifest, clips = result.shard_set.manifest, result.shard_set.clips
        if not clips.num_rows:
            if self._remote is not None:
                self._remote.release()
            discard(folder)
            raise nothing_usable(rejected, journal.request["files"])
        write_rejected(folder, rejected)
        for name, text in contents.files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        write_clips(folder, clips)
        if statistics is not None and STATISTICS_SPLIT in manifest.splits:
            first_clips = stored_clips(folder, manifest.splits[STATISTICS_SPLIT].shards, manifest.codec)
            manifest = replace(manifest, log_mel=dict(statistics(islice(first_clips, STATISTICS_CLIPS))))
        complete(folder, MANIFEST, manifest.to_json())
        if self._remote is not None:
            self._remote.complete(journal)
        seconds = time.perf_counter() - started
        return replace(result, shard_set=ShardSet(out, manifest, clips), wall_seconds=seconds)


def _result(
    out: Path,
    request: Mapping[str, Any],
    contents: Contents,
    shards: Sequence[DoneShard],
    made: int,
    started: float,
) -> PackResult:
    """What these shards are as a set; its manifest lacks log_mel."""
    tables = [DONE_SCHEMA.empty_table(), *(shard.clips for shard in shards)]
    clips = numbered(pa.concat_tables(tables).cast(DONE_SCHEMA).combine_chunks())
    splits = {}
    for split, some in groupby((shard for shard in shards if shard.clips.num_rows), _split):
        of_split = list(some)
        samples = sum(int(shard.clips["samples"].to_numpy().sum()) for shard in of_split)
        names = tuple(f"{shard.name}.tar" for shard in of_split)
        splits[split] = SplitInfo(names, sum(shard.clips.num_rows for shard in of_split), samples / SAMPLE_RATE_HZ)
    rejected = contents.rejected + [row for shard in shards for row in shard.rejected]
    manifest = Manifest(
        codec=request["codec"],
        max_seconds=request["max_seconds"],
        seed=request["seed"],
        splits=splits,
        label_names=tuple(contents.label_names),
        digest=clips_digest(clips, contents.label_names),
        rejected=len(rejected),
        log_mel=None,
        written_by=f"unfused-fast {__version__}",
        request=digest_of(request),
        dataset=request["dataset"],
    )
    size, seconds = sum(shard.bytes for shard in shards), time.perf_counter() - started
    return PackResult(ShardSet(out, manifest, clips), by_reason(text for *_, text in rejected), size, made, seconds)


def finished(out: Path, remote: RemoteSet | None, request: Mapping[str, Any], started: float) -> PackResult | None:
    """The set, or part of one, of this request that is there; None: there is none, or an unfinished one.

    Raises:
        UserError: it is of another request, or cannot be read.
    """
    shown = str(out) if remote is None else remote.shown
    if Journal(beside(out, "partial")).begun:
        return None
    part = None
    if remote is not None:
        if (there := remote.finished()) is None:
            return None
        result = PackResult(*there, shards_made=0, wall_seconds=time.perf_counter() - started)
    elif not is_complete(out):
        return None
    elif (out / PART).is_file():
        before, _, contents = read_part(out)
        part = before["part"]
        result = _result(out, before, contents, shards_of(out, contents), 0, started)
    else:
        tidy(out)
        shard_set = open_shards(out)
        tars = [path for split in shard_set.manifest.splits for path in shard_set.shard_paths(split)]
        size = sum(path.stat().st_size for tar in tars for path in (tar, index_path(tar)))
        result = PackResult(shard_set, read_reasons(out), size, 0, time.perf_counter() - started)
    if (result.shard_set.manifest.request, part) != (digest_of(request), request["part"]):
        raise UserError(
            f"{shown}: finished, but packed from different sources or with different options; choose another OUT, or "
            "replace it with --overwrite"
        )
    return result


def read_part(directory: Path) -> tuple[dict[str, Any], tuple[int, int], Contents]:
    """Of a finished part: the request, (i, n), and what it is made of. Raises UserError: there is none; malformed."""
    try:
        about = json.loads((directory / PART).read_text(encoding="utf-8"))
        rejected = [tuple(row) for row in about["contents"].pop("rejected")]
        number, count = map(int, about["request"]["part"].split("/"))
        contents = Contents(**about["contents"], rejected=rejected)
        texts = [*contents.shards, *contents.label_names, *contents.files.values(), contents.plan]
        if not 1 <= number <= count or not all(isinstance(text, str) for text in texts):
            raise ValueError("not what unfused-fast shard writes")
        return about["request"], (number, count), contents
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no finished part of a set; make one with: unfused-fast shard SOURCE {directory} --part i/n"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{directory / PART}: not a valid part of a set ({cause(error)}); copy the part again or pack it again"
        ) from error


def shards_of(part: Path, contents: Contents) -> list[DoneShard]:
    """The shards of a finished part. Raises UserError: the files of one are not there, or damaged."""
    shards = []
    for name in contents.shards:
        if (done := Journal(part).done(name)) is None:
            raise UserError(
                f"{part}: {name}.tar or its index is missing or damaged; copy the part again or pack it again"
            )
        shards.append(done)
    return shards


def _split(shard: DoneShard) -> str:
    return str(shard.clips["split"][0].as_py())


def stored_clips(folder: Path, tars: tuple[str, ...], codec: str) -> Iterator[NDArray[np.int16]]:
    """Samples of the clips of some tars, as they were written."""
    for name in tars:
        for contents in read_members(folder / name, read_index(index_path(folder / name))):
            yield decode_clip(contents[codec])
