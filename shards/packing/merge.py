"""Parts, each packed by one machine of a job array -> one set, byte for byte what one machine would have made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.packing.building import building
from unfused_fast.shards.packing.finish import Contents, Numbering, PackResult, Statistics, finish
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.pack import finished, read_part
from unfused_fast.shards.packing.pack_shard import DoneShard
from unfused_fast.shards.packing.upload import destination
from unfused_fast.shards.sets.shard_files import index_path


def merge(
    parts: Sequence[Path],
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    statistics: Statistics | None = None,
    progress: OnProgress = no_progress,
) -> PackResult:
    """Makes a set at `out` of all parts that pack_part() made of it. The parts stay as they are.

    Shards are linked where the file system allows, and copied otherwise; to a URL they are sent one by one. For the
    other arguments see pack().

    Args:
        progress: called with shards placed, shards in all, 0.

    Raises:
        UserError: a part is missing, unfinished, named twice, damaged, or of another set; or as pack().
    """
    started, made = time.perf_counter(), 0
    request, contents = _checked(parts)
    folder, remote = destination(out)
    if resume and (there := finished(folder, remote, request, started)) is not None:
        return there
    shards = [(part, _shard(part, name)) for part, of_part in contents.items() for name in of_part.shards]
    whole = replace(next(iter(contents.values())), shards=[done.name for _, done in shards])
    with building(folder, request, "merged", overwrite, resume, remote) as journal:
        numbering = Numbering(journal, whole.shards, remote)
        for number, (part, done) in enumerate(shards, 1):
            if journal.done(done.name) is None:
                _bring(part, journal, done)
                made += 1
            numbering.advance()
            progress(number, len(shards), 0)
        return finish(journal, folder, whole, request, numbering, statistics, remote, made, started)


def _checked(parts: Sequence[Path]) -> tuple[dict[str, Any], dict[Path, Contents]]:
    """What all parts are parts of, and what is in each, in order. Raises UserError: they do not form one set."""
    if not parts:
        raise UserError("no parts; name the folders that unfused-fast shard --part made")
    first, (_, count), _ = read_part(parts[0])
    there: dict[int, tuple[Path, Contents]] = {}
    for part in parts:
        request, (number, of), contents = read_part(part)
        if request != first or of != count:
            raise UserError(
                f"{part}: part {number} of {of} of a different set from {parts[0]}: sources or options differ; "
                "pack it again with the same ones"
            )
        if number in there:
            raise UserError(f"{part}: part {number} of {of}, and so is {there[number][0]}; name each part once")
        there[number] = part, contents
    if missing := sorted(set(range(1, count + 1)) - set(there)):
        raise UserError(
            f"{len(parts)} of {count} parts; part {', '.join(map(str, missing))} of {count} is missing: pack it with "
            f"--part {missing[0]}/{count}, and name all parts"
        )
    return first, dict(there[number] for number in sorted(there))


def _shard(part: Path, name: str) -> DoneShard:
    """A shard of a part. Raises UserError: its files are not there, or of another size."""
    done = Journal(part).done(name)
    if done is None:
        raise UserError(f"{part}: {name}.tar is missing or damaged; copy the part again or pack it again")
    return done


def _bring(part: Path, journal: Journal, done: DoneShard) -> None:
    """Puts a shard of a part into the set."""
    if done.clips.num_rows:
        tar, new = part / f"{done.name}.tar", journal.temporary(done.name)
        for old, linked in ((tar, new), (index_path(tar), index_path(new))):
            try:
                os.link(old, linked)
            except OSError:  # another file system, or one without links
                shutil.copyfile(old, linked)
            linked.replace(journal.set_folder / old.name)
    journal.note(done)
