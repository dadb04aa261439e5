"""Rows -> a shard set, or a part of one: read headers, lay out shards, make them in any order, number and finish.

The two long steps, reading headers and making shards, each resume where they were stopped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.packing.building import building, check_space
from unfused_fast.shards.packing.finish import Assembly, Contents, PackResult, Statistics, finished
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.packing.layout import Plan, PlannedShard, plan_pieces, plan_shards, share
from unfused_fast.shards.packing.options import Codec, PackOptions, request_of
from unfused_fast.shards.packing.pack_shard import DoneShard, ProbeJob, Rejection, ShardJob
from unfused_fast.shards.packing.upload import destination, part_folder
from unfused_fast.shards.packing.workers import Pool, Workers, worker_count
from unfused_fast.shards.sets.table import DONE_SCHEMA
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

HEADER_BLOCK = 128
"""Files whose headers are read by one job and kept together."""
NUMBERING_BEHIND = 4
"""Shards that may wait for their numbers, or to be sent to a URL, while others are made."""


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
    part: tuple[int, int] | None = None,
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
        part: (i, n): pack the i-th of n shares of the set to a folder, for merge.merge(); i from 1. Each part reads the
            headers of all files and decodes its share.
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
        UserError: an option out of range, more parts than files, nothing usable, a full disk, something at `out` that
            must not be replaced, or an unfinished set that was started with different options.
    """
    started, processes = time.perf_counter(), worker_count(workers)
    options = PackOptions(codec, max_seconds, min_seconds, seed, clips_per_shard, max_file_hours)
    rows = sorted(rows, key=attrgetter("source"))
    request = request_of(rows, options, dataset, part)
    if part is not None and part[1] > len(rows):
        raise UserError(f"part {part[0]} of {part[1]} of {counted(len(rows), 'file')}; make at most one part per file")
    folder, remote = destination(out) if part is None else (part_folder(out), None)
    if resume and (there := finished(folder, remote, request, started)) is not None:
        return there
    with ExitStack() as stack:
        journal = stack.enter_context(building(folder, request, overwrite, resume, remote))
        pool = pool or stack.enter_context(Workers(processes))
        plan, shards, contents = _plan_set(pool, journal, rows, options, part, files, progress)
        assembly = Assembly(journal, contents, remote)
        made = _make_shards(pool, plan, shards, assembly, options, remote is None, progress)
        return assembly.finish(folder, statistics, made, started)


def _plan_set(
    pool: Pool,
    journal: Journal,
    rows: Sequence[SourceRow],
    options: PackOptions,
    part: tuple[int, int] | None,
    files: Mapping[str, str] | None,
    progress: OnProgress,
) -> tuple[Plan, list[PlannedShard], Contents]:
    """Reads all headers: all pieces in order, and the shards of the set or of a part of it."""
    blocks = range(0, len(rows), HEADER_BLOCK)
    found = journal.headers({first: min(HEADER_BLOCK, len(rows) - first) for first in blocks})
    jobs = (
        ProbeJob(
            first,
            [row.path for row in rows[first : first + HEADER_BLOCK]],
            3600 * options.max_file_hours,
            found.get(first, ()),
        )
        for first in blocks
    )
    done = unusable = 0
    for job, answer in pool.answers(jobs):
        assert isinstance(job, ProbeJob)
        if [header.state for header in answer] != [header.state for header in job.known]:
            journal.add_headers(job.first, answer)
        found[job.first] = answer
        done += len(answer)
        unusable += sum(isinstance(header.found, Rejected) for header in answer)
        progress(done, len(rows), unusable)
    frames, start, stop = (np.zeros(len(rows), np.int64) for _ in range(3))
    rejected: list[Rejection] = []
    headers = [header.found for first in sorted(found) for header in found[first]]
    for number, (row, header) in enumerate(zip(rows, headers, strict=True)):
        try:
            frames[number], start[number], stop[number] = _packed(row, header, options)
        except Rejected as rejection:
            rejected.append((row.source, 0, str(rejection)))
    progress(len(rows), len(rows), len(rejected))
    plan = plan_pieces(rows, frames, start, stop, options.max_seconds, options.seed)
    usable = (rows[row] for row in np.unique(plan.row))
    labels = sorted({name for row in usable for name in (row.labels or [row.label]) if name is not None})
    shards = plan_shards(plan, options.clips_per_shard)
    if part is not None:
        shards = share(shards, *part)
    journal.begin_plan(plan.digest())
    names = [shard.name for shard in shards]
    return plan, shards, Contents(names, labels, rejected, dict(files or {}), plan.digest())


def _packed(row: SourceRow, header: Probe | Rejected, options: PackOptions) -> tuple[int, int, int]:
    """Samples of a file at its own rate; what is packed of it, in samples at 16 kHz. Raises Rejected."""
    if isinstance(header, Rejected):
        raise header
    start, stop = 0, header.samples
    if row.span is not None:
        start, stop = (min(stop, round(seconds * SAMPLE_RATE_HZ)) for seconds in row.span)
    if stop - start < options.minimum_samples:
        raise Rejected(Reason.TOO_SHORT, f"{(stop - start) / SAMPLE_RATE_HZ:.3f} s")
    return header.frames, start, stop


def _make_shards(
    pool: Pool,
    plan: Plan,
    shards: Sequence[PlannedShard],
    assembly: Assembly,
    options: PackOptions,
    stays: bool,
    progress: OnProgress,
) -> int:
    """Makes the shards that are not there yet, adds all to `assembly`, and returns the number of those made.

    Args:
        stays: all shards need room on the disk at the same time.
    """
    journal = assembly.journal
    there = [made for shard in shards if (made := journal.done(shard.name)) is not None]
    names = {made.name for made in there}
    missing = [shard for shard in shards if shard.name not in names]
    if stays and options.codec == "wav":
        clip_bytes = plan.bytes()
        check_space(journal.set_folder, sum(int(clip_bytes[shard.first : shard.last].sum()) for shard in missing))
    total = sum(shard.last - shard.first for shard in shards)
    done = total - sum(shard.last - shard.first for shard in missing)
    rejected = len(assembly.contents.rejected) + sum(len(made.rejected) for made in there)
    jobs = (
        ShardJob(
            name=shard.name,
            tar=journal.temporary(shard.name),
            pieces=plan.pieces_of(shard),
            first_id=shard.first,
            codec=options.codec,
            minimum_samples=options.minimum_samples,
            label_names=assembly.contents.label_names,
        )
        for shard in missing
    )

    def report(items: int = 0) -> None:
        progress(min(done + items, total), total, rejected)

    background = ThreadPoolExecutor(1)
    adding = deque(background.submit(assembly.add, made) for made in there)
    try:
        report()
        for job, (columns, lost, size) in pool.answers(jobs, report):
            assert isinstance(job, ShardJob)
            made = DoneShard(job.name, pa.table(columns, DONE_SCHEMA), lost, size)
            journal.publish(job.tar, made)
            adding.append(background.submit(assembly.add, made))
            while adding and (adding[0].done() or len(adding) > NUMBERING_BEHIND):
                adding.popleft().result()
            done, rejected = done + len(job.pieces), rejected + len(made.rejected)
            report()
        for future in adding:
            future.result()
    finally:
        background.shutdown(cancel_futures=True)
    return len(missing)
