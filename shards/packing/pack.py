"""Rows -> a shard set, or a part of one: read headers, lay out shards, make them in any order, number and finish."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError, cause
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.packing.building import building, complete, is_complete, partial_of
from unfused_fast.shards.packing.finish import Contents, Numbering, PackResult, Statistics, finish
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.making import make_shards, plan_set
from unfused_fast.shards.packing.options import Codec, PackOptions, digest_of, request_of
from unfused_fast.shards.packing.rejections import by_reason, read_reasons
from unfused_fast.shards.packing.upload import RemoteSet, destination
from unfused_fast.shards.packing.workers import Pool, Workers, worker_count
from unfused_fast.shards.sets.shard_files import index_path
from unfused_fast.shards.sets.table import PART, open_shards
from unfused_fast.shards.sources.row import SourceRow


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
    progress: OnProgress = no_progress,
) -> PackResult:
    """Packs audio files into a shard set at `out`. The same rows and options give the same bytes for any `workers`.

    The set is made in the sibling folder OUT.partial and replaces OUT when it is complete. However this
    function ends, the same call resumes OUT.partial. Files that cannot be used are listed in rejected.csv; the pieces
    of a long file are checked one by one. For the options that determine the bytes see PackOptions.

    Args:
        out: a folder, or an fsspec URL (s3://, gs://): the set is made in the cache folder, each shard is uploaded as
            soon as all before it are made, and uses no disk space from then on; see upload.
        workers: processes; None: one per core; 0: none, and a crash of a decoder ends the program.
        pool: where the work is done instead.
        overwrite: replace the shard set at `out`, and delete what an unfinished run left (unless `resume`).
        resume: a set at `out` that this call would make again is kept, and its result returned.
        dataset: for the manifest.
        files: name -> text of what is written next to the shards.
        statistics: given the samples of the first training clips, (samples,) int16 each; what it returns becomes
            manifest.log_mel.
        progress: called with steps done, steps in all, rejections: up to the number of files while their headers are
            read, then from 0 up to the number of clips.

    Raises:
        UserError: an option out of range, nothing usable, a full disk, something at `out` that must not be replaced,
            or an unfinished set that was started with different options.
    """
    started, processes = time.perf_counter(), worker_count(workers)
    options = PackOptions(codec, max_seconds, min_seconds, seed, clips_per_shard, max_file_hours)
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset)
    folder, remote = destination(out)
    if resume and (there := finished(folder, remote, request, started)) is not None:
        return there
    with ExitStack() as stack:
        journal = stack.enter_context(building(folder, request, None, overwrite, resume, remote))
        pool = pool or stack.enter_context(Workers(processes))
        *_, contents = planned = plan_set(pool, journal, rows, options, None, files, progress)
        numbering = Numbering(journal, contents.shards, remote)
        made = make_shards(pool, journal, planned, options, progress, numbering, stays=remote is None)
        return finish(journal, folder, contents, request, numbering, statistics, remote, made, started)


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
    progress: OnProgress = no_progress,
) -> PartResult:
    """Packs the i-th of n shares of a set, `part` being (i, n) with i from 1, for merge.merge().

    Each part reads the headers of all files and decodes its share. Everything else is as in pack().
    """
    started, made, processes = time.perf_counter(), 0, worker_count(workers)
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part {part[0]}/{part[1]}, but parts are 1/n to n/n")
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset)
    if resume and is_complete(out) and not Journal(partial_of(out)).begun:
        before, number, contents = read_part(out)
        if (before, number) != (request, part):
            raise _other(str(out))
    else:
        with ExitStack() as stack:
            shown = f"{part[0]}/{part[1]}"
            journal = stack.enter_context(building(out, request, shown, overwrite, resume))
            pool = stack.enter_context(Workers(processes))
            *_, contents = planned = plan_set(pool, journal, rows, options, part, files, progress)
            made = make_shards(pool, journal, planned, options, progress, None)
            about = {"request": request, "part": part, "contents": asdict(contents)}
            complete(journal.set_folder, PART, json.dumps(about, indent=2, sort_keys=True) + "\n")
    done = [shard for name in contents.shards if (shard := Journal(out).done(name)) is not None]
    return PartResult(
        directory=out,
        part=part,
        shards=len(done),
        packed=sum(shard.clips.num_rows for shard in done),
        rejected=by_reason(contents.rejected + [row for shard in done for row in shard.rejected]),
        shards_made=made,
        wall_seconds=time.perf_counter() - started,
    )


def read_part(directory: Path) -> tuple[dict[str, Any], tuple[int, int], Contents]:
    """Of a finished part: the request, (i, n), and what it is made of. Raises UserError: there is none; malformed."""
    try:
        about = json.loads((directory / PART).read_text(encoding="utf-8"))
        number, count = about["part"]
        rejected = [tuple(row) for row in about["contents"].pop("rejected")]
        return about["request"], (number, count), Contents(**about["contents"], rejected=rejected)
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no finished part of a set; make one with: unfused-fast shard SOURCE {directory} --part i/n"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{directory / PART}: not a valid part of a set ({cause(error)}); copy the part again or pack it again"
        ) from error


def finished(folder: Path, remote: RemoteSet | None, request: Mapping[str, Any], started: float) -> PackResult | None:
    """The set of this request that is there, if there is a set.

    Raises:
        UserError: it is of another request, or its rejected.csv cannot be read.
    """
    shown = str(folder) if remote is None else remote.shown
    if Journal(partial_of(folder)).begun:
        return None
    if remote is not None:
        there = remote.finished()
    elif (folder / PART).is_file():
        raise _other(shown)
    else:
        there = (open_shards(folder), read_reasons(folder)) if is_complete(folder) else None
    if there is None:
        return None
    shard_set, rejected = there
    if shard_set.manifest.request != digest_of(request):
        raise _other(shown)
    tars = [path for split in shard_set.manifest.splits if remote is None for path in shard_set.shard_paths(split)]
    size = sum(path.stat().st_size for tar in tars for path in (tar, index_path(tar)))
    size = size if remote is None else remote.shard_bytes
    return PackResult(shard_set, rejected, size, 0, time.perf_counter() - started)


def _other(out: str) -> UserError:
    return UserError(
        f"{out}: finished, but packed from different sources or with different options; choose another OUT, or "
        "replace it with --overwrite"
    )
