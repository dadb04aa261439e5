"""Rows -> a shard set, or a part of one: read all headers, plan, make the shards in any order, number and finish."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.building import Building, building, is_complete, partial_of
from unfused_fast.shards.finish import PackResult, Statistics, finish, rejected_reasons, result_of
from unfused_fast.shards.journal import Journal
from unfused_fast.shards.making import Progress, make_shards, plan_set, read_headers
from unfused_fast.shards.options import Codec, PackOptions, Request, request_of
from unfused_fast.shards.rows import SourceRow
from unfused_fast.shards.table import PART, open_shards, read_manifest
from unfused_fast.shards.workers import Pool, Workers, available_cores


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
    out: Path,
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
    progress: Progress | None = None,
) -> PackResult:
    """Packs audio files into a shard set at `out`. The same rows and options give the same bytes for any `workers`.

    The set is made in the sibling folder OUT.partial and takes OUT's place when it is complete. Whatever ends this
    function, it goes on with OUT.partial when it is called again. Files that cannot be used end in rejected.csv; the
    pieces of a long file are judged one by one. For the options that decide the bytes see PackOptions.

    Args:
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
    if _is_finished(out, resume):
        if (out / PART).is_file() or read_manifest(out).request != request.digest:
            raise _other(out)
        return result_of(open_shards(out), out, {}, 0, time.perf_counter() - started)
    report = progress or _no_progress
    with ExitStack() as stack:
        journal, build = stack.enter_context(_journaled(out, request, None, overwrite, resume))
        pool = pool or stack.enter_context(Workers(_processes(workers)))
        plan, rejected = read_headers(pool, journal, rows, options, report)
        shards, label_names = plan_set(journal, plan, rejected, options, None, files or {})
        made = make_shards(pool, build, journal, plan, shards, label_names, options, report)
        reasons = rejected_reasons(journal)
        shard_set = finish(build, journal, options, request, statistics)
    return result_of(shard_set, out, reasons, made, time.perf_counter() - started)


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
    progress: Progress | None = None,
) -> PartResult:
    """Packs the i-th of n shares of a set, `part` being (i, n) with i from 1, for merge.merge().

    Each part reads the headers of all files and decodes its share. All else is as pack() does it.
    """
    started = time.perf_counter()
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part {part[0]}/{part[1]}, but parts are 1/n to n/n")
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset)
    if _is_finished(out, resume):
        about = read_part(out)
        if (about["request"], tuple(about["part"])) != (request.digest, part):
            raise _other(out)
        return _part_result(out, part, 0, time.perf_counter() - started)
    with ExitStack() as stack:
        journal, build = stack.enter_context(_journaled(out, request, part, overwrite, resume))
        pool = stack.enter_context(Workers(_processes(workers)))
        report = progress or _no_progress
        plan, rejected = read_headers(pool, journal, rows, options, report)
        shards, label_names = plan_set(journal, plan, rejected, options, part, files or {})
        made = make_shards(pool, build, journal, plan, shards, label_names, options, report)
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
def _journaled(
    out: Path, request: Request, part: tuple[int, int] | None, overwrite: bool, resume: bool
) -> Iterator[tuple[Journal, Building]]:
    before = Journal(partial_of(out))
    replace = overwrite or (resume and before.replaces)
    with building(out, replace, fresh=overwrite and not resume) as build:
        journal = Journal(build.folder)
        journal.begin({**request.values, "part": part and f"{part[0]}/{part[1]}"}, replace, out)
        yield journal, build


def _is_finished(out: Path, resume: bool) -> bool:
    return resume and is_complete(out) and not Journal(partial_of(out)).begun


def _other(out: Path) -> UserError:
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


def _no_progress(done: int, total: int, rejected: int) -> None:
    """Nobody watches."""
