"""Rows -> a shard set, or a part of one: read all headers, plan, make the shards in any order, number and finish."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.building import Building, building, is_complete, partial_of
from unfused_fast.shards.packing.finish import PackResult, Sender, Statistics, finish, rejected_reasons, result_of
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.making import make_shards, plan_set, read_headers
from unfused_fast.shards.packing.options import Codec, PackOptions, Request, request_of
from unfused_fast.shards.packing.rejections import read_reasons
from unfused_fast.shards.packing.upload import UploadedSet, destination
from unfused_fast.shards.packing.workers import Pool, Workers, available_cores
from unfused_fast.shards.sets.table import PART, ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.telling import Progress, unseen


@dataclass(frozen=True)
class PartResult:
    """What pack_part() did."""

    directory: Path
    part: tuple[int, int]
    shards: int
    packed: int
    """Clips."""
    rejected: dict[str, int]
    """By reason; files that were rejected by their headers are counted in every part."""
    shards_made: int
    """In this run; the others were there."""
    wall_seconds: float


def pack(
    rows: Sequence[SourceRow],
    out: Path | str,
    *,
    codec: Codec = "wav",
    max_seconds: float = 10.0,
    min_seconds: float = 0.1,
    seed: int = 0,
    clips_per_shard: int | None = None,
    max_file_hours: float = 24.0,
    workers: int | None = None,
    pool: Pool | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dataset: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    statistics: Statistics | None = None,
    progress: Progress = unseen,
) -> PackResult:
    """Packs audio files into a shard set at `out`. The same rows and options give the same bytes for any `workers`.

    The set is made in the sibling folder OUT.partial and takes OUT's place when it is complete. Whatever ends this
    function, it goes on with OUT.partial when it is called again. Files that cannot be used end in rejected.csv; the
    pieces of a long file are judged one by one. For the options that decide the bytes see PackOptions.

    Args:
        out: a folder, or an fsspec URL (s3://, gs://): the set is made in the cache folder, each shard is sent as soon
            as all before it are made, and takes no room from then on; see remote_sets.
        workers: processes; None: one a core; 0: none, and a crash of a decoder ends the program.
        pool: where the work is done instead.
        overwrite: replace the shard set at `out`, and delete what an unfinished run left (unless `resume`).
        resume: a set at `out` that this call would make again is left as it is, and described.
        dataset: for the manifest.
        files: name -> text of what is written beside the shards.
        statistics: given the samples of the first training clips, (samples,) int16 each; what it returns becomes
            manifest.log_mel.
        progress: called with steps done, steps in all, rejections: up to the number of files while they are probed,
            then from 0 up to the number of clips.

    Raises:
        UserError: an option out of range, nothing usable, a full disk, something at `out` that must stay, or an
            unfinished set that was begun with other options.
    """
    started = time.perf_counter()
    options = PackOptions(codec, max_seconds, min_seconds, seed, clips_per_shard, max_file_hours)
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset)
    folder, remote = destination(out)
    if resume and (there := finished(folder, remote, request)) is not None:
        return result_of(there[0], folder, there[1], 0, time.perf_counter() - started, remote)
    with ExitStack() as stack:
        asked = {**request.values, "part": None}
        journal, build = stack.enter_context(journaled(folder, asked, request, overwrite, resume, remote))
        pool = pool or stack.enter_context(Workers(_processes(workers)))
        plan, rejected = read_headers(pool, journal, rows, options, progress)
        shards, label_names = plan_set(journal, plan, rejected, options, None, files or {})
        send = None if remote is None else Sender(journal, remote).advance
        made = make_shards(pool, build, journal, plan, shards, label_names, options, progress, send)
        reasons = rejected_reasons(journal)
        shard_set = finish(build, journal, options, request, statistics, remote)
    if remote is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return result_of(shard_set, folder, reasons, made, time.perf_counter() - started, remote)


def pack_part(
    rows: Sequence[SourceRow],
    out: Path,
    part: tuple[int, int],
    options: PackOptions,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dataset: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    progress: Progress = unseen,
) -> PartResult:
    """Packs the i-th of n shares of a set, `part` being (i, n) with i from 1, for merge.merge().

    Each part reads the headers of all files and decodes its share. All else is as pack() does it.
    """
    started = time.perf_counter()
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part {part[0]}/{part[1]}, but parts are 1/n to n/n")
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset)
    if resume and is_complete(out) and not Journal(partial_of(out)).begun:
        about = read_part(out)
        if (about["request"], tuple(about["part"])) != (request.digest, part):
            raise _other(str(out))
        return _part_result(out, part, 0, time.perf_counter() - started)
    with ExitStack() as stack:
        asked = {**request.values, "part": f"{part[0]}/{part[1]}"}
        journal, build = stack.enter_context(journaled(out, asked, request, overwrite, resume))
        pool = stack.enter_context(Workers(_processes(workers)))
        plan, rejected = read_headers(pool, journal, rows, options, progress)
        shards, label_names = plan_set(journal, plan, rejected, options, part, files or {})
        made = make_shards(pool, build, journal, plan, shards, label_names, options, progress)
        about = {"asked": dict(request.values), "request": request.digest, "part": list(part)}
        build.finish(PART, json.dumps(about, indent=2, sort_keys=True) + "\n")
    return _part_result(out, part, made, time.perf_counter() - started)


def read_part(directory: Path) -> dict[str, Any]:
    """What part.json says: asked (see Request), request (its digest), part ([i, n]).

    Raises:
        UserError: there is none, or it is malformed.
    """
    path = directory / PART
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {"asked", "request", "part"} <= set(about) and len(about["part"]) == 2:
            return about
        problem: object = f"its keys are {', '.join(about)}"
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no finished part of a set; make one with: unfused-fast shard SOURCE {directory} --part i/n"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        problem = error
    raise UserError(f"{path}: not what a part holds ({problem}); copy the part again or pack it again")


@contextmanager
def journaled(
    folder: Path,
    options: Mapping[str, Any],
    request: Request,
    overwrite: bool,
    resume: bool,
    remote: UploadedSet | None = None,
) -> Iterator[tuple[Journal, Building]]:
    """The journal of the set that is made in `folder`, and what building() gives; see there."""
    if remote is not None:  # it is there, and complete, when a run was killed at its very end
        shutil.rmtree(folder, ignore_errors=True)
    before = Journal(partial_of(folder))
    begun, replace = before.begun, overwrite or (resume and before.replaces)
    shown = str(folder) if remote is None else remote.shown
    with building(folder, replace, fresh=overwrite and not resume, shown=shown) as build:
        journal = Journal(build.folder)
        journal.begin(options, replace, shown)
        if remote is not None:
            try:
                remote.begin(journal, request.digest, overwrite)
            except UserError:
                if not begun:
                    build.discard()
                raise
        yield journal, build


def finished(folder: Path, remote: UploadedSet | None, request: Request) -> tuple[ShardSet, dict[str, int]] | None:
    """The set of this request that is there, and its rejections by reason, if there is a set.

    Raises:
        UserError: it is of another request, or its rejected.csv cannot be read.
    """
    if Journal(partial_of(folder)).begun:
        return None
    if remote is not None:
        there = remote.finished()
    elif (folder / PART).is_file():
        raise _other(str(folder))
    else:
        there = (open_shards(folder), read_reasons(folder)) if is_complete(folder) else None
    if there is not None and there[0].manifest.request != request.digest:
        raise _other(str(folder) if remote is None else remote.shown)
    return there


def _other(out: str) -> UserError:
    return UserError(
        f"{out}: finished, but packed from other sources or with other options than these; name another place, or "
        "replace it with --overwrite"
    )


def _part_result(out: Path, part: tuple[int, int], made: int, wall_seconds: float) -> PartResult:
    journal = Journal(out)
    shards = [done for name in journal.plan().shards if (done := journal.done(name)) is not None]
    packed = sum(shard.clips.num_rows for shard in shards)
    return PartResult(out, part, len(shards), packed, rejected_reasons(journal), made, wall_seconds)


def _processes(workers: int | None) -> int:
    if workers is not None and workers < 0:
        raise UserError(f"{workers} workers, but at least 1 is needed; leave it out for one a core")
    return available_cores() if workers is None else workers
