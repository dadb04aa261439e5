"""The two long steps of packing, each of which resumes where it was stopped: reading headers, making shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.callbacks import OnProgress
from unfused_fast.shards.packing.building import Journal, check_space
from unfused_fast.shards.packing.finish import Assembly, Contents
from unfused_fast.shards.packing.layout import Plan, PlannedShard, plan_pieces, plan_shards, share
from unfused_fast.shards.packing.options import PackOptions
from unfused_fast.shards.packing.pack_shard import ProbeJob, Rejection, ShardJob
from unfused_fast.shards.packing.workers import Pool
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

HEADER_BLOCK = 128
"""Files whose headers are read by one job and kept together."""
NUMBERING_BEHIND = 4
"""Shards that may wait for their numbers, or to be sent to a URL, while others are made."""


def plan_set(
    pool: Pool,
    journal: Journal,
    rows: Sequence[SourceRow],
    options: PackOptions,
    part: tuple[int, int] | None,
    files: Mapping[str, str] | None,
    progress: OnProgress,
) -> tuple[Plan, list[PlannedShard], Contents]:
    """Reads all headers: all pieces in order, and the shards of the set or of a part of it."""
    found = journal.headers()
    jobs = (
        ProbeJob(first, [row.path for row in rows[first : first + HEADER_BLOCK]], 3600 * options.max_file_hours)
        for first in range(0, len(rows), HEADER_BLOCK)
        if first not in found
    )
    headers = [header for block in found.values() for header in block]
    done, unusable = len(headers), _rejected(headers)
    for job, answer in pool.answers(jobs):
        assert isinstance(job, ProbeJob)
        journal.add_headers(job.first, answer)
        found[job.first] = answer
        done, unusable = done + len(answer), unusable + _rejected(answer)
        progress(done, len(rows), unusable)
    frames, start, stop = (np.zeros(len(rows), np.int64) for _ in range(3))
    rejected: list[Rejection] = []
    headers = [header for first in sorted(found) for header in found[first]]
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
    return plan, shards, Contents([shard.name for shard in shards], labels, rejected, dict(files or {}))


def _rejected(answer: Sequence[Probe | Rejected]) -> int:
    return sum(isinstance(header, Rejected) for header in answer)


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


def make_shards(
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
        for job, made in pool.answers(jobs, report):
            assert isinstance(job, ShardJob)
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
