"""Parts, each packed by one machine of a job array -> one set, byte for byte what one machine would have made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.packing.building import building
from unfused_fast.shards.packing.finish import (
    Assembly,
    Contents,
    PackResult,
    Statistics,
    finished,
    read_part,
    shards_of,
)
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.options import digest_of
from unfused_fast.shards.packing.pack_shard import DoneShard
from unfused_fast.shards.packing.upload import destination, part_folder
from unfused_fast.shards.sets.shard_files import index_path

NAMED = 8
"""Missing parts that an error names."""


def merge(
    parts: Sequence[Path | str],
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    statistics: Statistics | None = None,
    progress: OnProgress = no_progress,
) -> PackResult:
    """Makes a set at `out` of all parts that pack(part=...) made of it. The parts stay as they are.

    Shards are linked where the file system allows, and copied otherwise; to a URL they are sent one by one. For the
    other arguments see pack().

    Args:
        progress: called with shards placed, shards in all, 0.

    Raises:
        UserError: a part is missing, unfinished, named twice, damaged, or of another set; or as pack().
    """
    started, made = time.perf_counter(), 0
    request, contents = _checked([part_folder(part) for part in parts])
    folder, remote = destination(out)
    if same := [part for part in contents if part.resolve().is_relative_to(folder.resolve())]:
        raise UserError(f"{folder}: it holds {same[0]}, and the parts stay as they are; choose a new OUT")
    if resume and (there := finished(folder, remote, request, started)) is not None:
        return there
    shards = [
        (part, replace(done, origin=_origin(part, done)))
        for part, of_part in contents.items()
        for done in shards_of(part, of_part)
    ]
    whole = replace(next(iter(contents.values())), shards=[done.name for _, done in shards])
    with building(folder, request, overwrite, resume, remote) as journal:
        journal.begin_plan(whole.plan)
        assembly = Assembly(journal, whole, remote)
        for number, (part, done) in enumerate(shards, 1):
            if assembly.has_moved(done.name):
                journal.forget_sent(done.name)
            if journal.done(done.name) != done:  # or its part has changed
                _bring(part, journal, done)
                made += 1
            assembly.add(done)
            progress(number, len(shards), 0)
        return assembly.finish(folder, statistics, made, started)


def _checked(parts: Sequence[Path]) -> tuple[dict[str, Any], dict[Path, Contents]]:
    """The request of the set, and what is in each part, in order. Raises UserError: they do not form one set."""
    if not parts:
        raise UserError("no parts; name the folders that unfused-fast shard --part made")
    first, (_, count), of_first = read_part(parts[0])
    there: dict[int, tuple[Path, Contents]] = {}
    for part in parts:
        request, (number, of), contents = read_part(part)
        if digest_of(request) != digest_of(first) or of != count:
            raise UserError(
                f"{part}: part {number} of {of} of a different set from {parts[0]}: sources or options differ; "
                "pack it again with the same ones"
            )
        if contents.plan != of_first.plan:
            raise UserError(
                f"{part}: some files had other lengths, or could not be read, when {parts[0]} was packed; pack all "
                "parts again from the same files, with --overwrite"
            )
        if number in there:
            raise UserError(f"{part}: part {number} of {of}, and so is {there[number][0]}; name each part once")
        there[number] = part, contents
    if lacking := count - len(there):
        missing = list(islice((number for number in range(1, count + 1) if number not in there), NAMED))
        others = f" and {lacking - len(missing)} others" if lacking > len(missing) else ""
        raise UserError(
            f"{len(parts)} of {count} parts; part {', '.join(map(str, missing))}{others} of {count} "
            f"{'is' if lacking == 1 else 'are'} missing: pack {'it' if lacking == 1 else 'each'} with --part "
            f"{missing[0]}/{count}{'' if lacking == 1 else ' and so on'}, and name all parts"
        )
    return {**first, "part": None}, dict(there[number] for number in sorted(there))


def _origin(part: Path, done: DoneShard) -> tuple[int, ...]:
    """Inodes and times of the files of a shard of a part: others where the part was copied or packed again."""
    states = [file.stat() for file in Journal(part).files(done.name)] if done.bytes else []
    return tuple(number for state in states for number in (state.st_ino, state.st_mtime_ns))


def _bring(part: Path, journal: Journal, done: DoneShard) -> None:
    """Puts a shard of a part into the set."""
    tar = journal.temporary(done.name)
    for old, new in zip(Journal(part).files(done.name), (tar, index_path(tar)), strict=True):
        if done.bytes:
            try:
                os.link(old, new)
            except OSError:  # another file system, or one without links
                shutil.copyfile(old, new)
    journal.publish(tar, done)
