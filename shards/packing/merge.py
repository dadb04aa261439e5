"""Parts, each packed by one machine of a job array -> one set, byte for byte what one machine would have made."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.packing.finish import PackResult, Sender, Statistics, finish, rejected_reasons, result_of
from unfused_fast.shards.packing.journal import DoneShard, Journal, JournalPlan
from unfused_fast.shards.packing.options import PackOptions, Request
from unfused_fast.shards.packing.pack import finished, journaled, read_part
from unfused_fast.shards.packing.upload import destination
from unfused_fast.shards.sets.shard_files import index_path
from unfused_fast.shards.telling import Progress, unseen


def merge(
    parts: Sequence[Path],
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    statistics: Statistics | None = None,
    progress: Progress = unseen,
) -> PackResult:
    """Makes a set at `out` of all parts that pack_part() made of it. The parts stay as they are.

    Shards are linked where the file system allows, and copied otherwise; to a URL they are sent one by one. For the
    other arguments see pack().

    Args:
        progress: called with shards that are where they belong, shards in all, 0.

    Raises:
        UserError: a part is missing, unfinished, twice there, damaged, or of another set; or as pack().
    """
    started = time.perf_counter()
    request, parts = _checked(parts)
    folder, remote = destination(out)
    if resume and (there := finished(folder, remote, request)) is not None:
        return result_of(there[0], folder, there[1], 0, time.perf_counter() - started, remote)
    made = 0
    asked = {**request.values, "part": "merged"}
    with journaled(folder, asked, request, overwrite, resume, remote) as (journal, build):
        shards = [(Journal(part), name) for part in parts for name in Journal(part).plan().shards]
        plan = Journal(parts[0]).plan()
        journal.set_plan(JournalPlan(tuple(name for _, name in shards), plan.label_names, plan.rejected, plan.files))
        sender = None if remote is None else Sender(journal, remote)
        first_id = 0
        for number, (source, name) in enumerate(shards, 1):
            done = source.done(name)
            if done is None:
                raise UserError(
                    f"{source.set_folder}: {name}.tar is missing or damaged; copy the part again or pack it again"
                )
            if journal.done(name) is None:
                _bring(source, journal, done, linked=done.first_id == first_id)
                made += 1
            first_id += done.clips.num_rows
            if sender is not None:
                sender.advance()
            progress(number, len(shards), 0)
        reasons = rejected_reasons(journal)
        options = PackOptions(**{name: request.values[name] for name in PackOptions.__dataclass_fields__})
        shard_set = finish(build, journal, options, request, statistics, remote)
    if remote is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result_of(shard_set, folder, reasons, made, time.perf_counter() - started, remote)


def _checked(parts: Sequence[Path]) -> tuple[Request, list[Path]]:
    """What all parts are parts of, and the parts in order. Raises UserError: they do not make one set."""
    if not parts:
        raise UserError("no parts; name the folders that unfused-fast shard --part made")
    abouts = [read_part(part) for part in parts]
    first = abouts[0]
    there: dict[int, Path] = {}
    for part, about in zip(parts, abouts, strict=True):
        number, count = about["part"]
        if about["request"] != first["request"] or count != first["part"][1]:
            raise UserError(
                f"{part}: part {number} of {count} of another set than {parts[0]}: other sources or options; "
                "pack it again with the same ones"
            )
        if number in there:
            raise UserError(f"{part}: part {number} of {count}, and so is {there[number]}; name each part once")
        there[number] = part
    count = first["part"][1]
    if missing := sorted(set(range(1, count + 1)) - set(there)):
        raise UserError(
            f"{len(parts)} of {count} parts; part {', '.join(map(str, missing))} of {count} is missing: pack it with "
            f"--part {missing[0]}/{count}, and name all parts"
        )
    return Request(first["asked"]), [there[number] for number in sorted(there)]


def _bring(source: Journal, journal: Journal, done: DoneShard, linked: bool) -> None:
    """Puts a shard of a part into the set; one that has to be renumbered is copied, because a link has one content."""
    if done.clips.num_rows:
        tar = Path(f"{done.name}.tar")
        place = journal.place(done.name)
        for name, new in ((tar, place), (index_path(tar), index_path(place))):
            _copy(source.set_folder / name, new, linked)
            to_disk(new)
            new.replace(journal.set_folder / name)
        to_disk(journal.set_folder)
    journal.note(done)


def _copy(old: Path, new: Path, linked: bool) -> None:
    if linked:
        try:
            os.link(old, new)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
    shutil.copyfile(old, new)
