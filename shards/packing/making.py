"""The two long steps of packing, each of which goes on where it was stopped: reading headers, making shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event

import numpy as np

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import Probe
from unfused_fast.shards.packing.building import Building
from unfused_fast.shards.packing.journal import Journal, JournalPlan
from unfused_fast.shards.packing.layout import Plan, PlannedShard, plan_pieces, plan_shards, share
from unfused_fast.shards.packing.options import PackOptions
from unfused_fast.shards.packing.pack_shard import ProbeJob, Rejection, ShardJob, WrittenShard
from unfused_fast.shards.packing.workers import Pool
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.telling import Progress

PROBE_BLOCK = 1 << 16
"""Files whose headers are kept together."""
PROBE_JOB_FILES = 64
PUBLISHING = 4
"""Shards that may be on their way to the disk, or to a URL, while others are made."""


def read_headers(
    pool: Pool, journal: Journal, rows: Sequence[SourceRow], options: PackOptions, report: Progress
) -> tuple[Plan, list[Rejection]]:
    """All pieces in order, and the files that cannot be decoded, as far as headers tell."""
    frames, start, stop = (np.zeros(len(rows), np.int64) for _ in range(3))
    rejected: list[Rejection] = []
    for block, first in enumerate(range(0, len(rows), PROBE_BLOCK)):
        in_block = rows[first : first + PROBE_BLOCK]
        probes = journal.probes(block)
        if probes is None:
            told = partial(_report_block, report, first, len(rows), len(rejected))
            probes = _probe(pool, in_block, 3600 * options.max_file_hours, told)
            journal.add_probes(block, probes)
        for number, (row, answer) in enumerate(zip(in_block, probes, strict=True), first):
            verdict = _packed_part(row, answer, options)
            if isinstance(verdict, Rejected):
                rejected.append((row.source, 0, str(verdict.reason), str(verdict)))
            elif isinstance(answer, Probe):
                frames[number], (start[number], stop[number]) = answer.frames, verdict
        report(first + len(in_block), len(rows), len(rejected))
    return plan_pieces(rows, frames, start, stop, options.max_seconds, options.seed), rejected


def _packed_part(row: SourceRow, answer: Probe | Rejected, options: PackOptions) -> tuple[int, int] | Rejected:
    """What is packed of a file, in samples at 16 kHz."""
    if isinstance(answer, Rejected):
        return answer
    start, stop = 0, answer.samples
    if row.span is not None:
        start, stop = (min(stop, round(seconds * SAMPLE_RATE_HZ)) for seconds in row.span)
    if stop - start < options.minimum_samples:
        return Rejected(Reason.TOO_SHORT, f"{(stop - start) / SAMPLE_RATE_HZ:.3f} s")
    return start, stop


def _report_block(report: Progress, first: int, total: int, before: int, done: int, rejected: int) -> None:
    report(first + done, total, before + rejected)


def _probe(
    pool: Pool, rows: Sequence[SourceRow], longest_seconds: float, report: Callable[[int, int], None]
) -> list[Probe | Rejected]:
    starts = range(0, len(rows), PROBE_JOB_FILES)
    jobs = (ProbeJob(at, [row.path for row in rows[at : at + PROBE_JOB_FILES]], longest_seconds) for at in starts)
    answers: dict[int, list[Probe | Rejected]] = {}
    done = rejected = 0
    for job, answer in pool.answers(jobs):
        assert isinstance(job, ProbeJob)
        answers[job.first] = answer
        done += len(answer)
        rejected += sum(isinstance(probe, Rejected) for probe in answer)
        report(done, rejected)
    return [probe for at in starts for probe in answers[at]]


def plan_set(
    journal: Journal,
    plan: Plan,
    rejected: Sequence[Rejection],
    options: PackOptions,
    part: tuple[int, int] | None,
    files: Mapping[str, str],
) -> tuple[list[PlannedShard], list[str]]:
    """The shards to make, of the whole set or of a part, and the label names; both go to the journal."""
    rows = (plan.rows[row] for row in np.unique(plan.row))
    label_names = sorted({name for row in rows for name in (row.labels or [row.label]) if name is not None})
    shards = plan_shards(plan, options.clips_per_shard)
    if part is not None:
        shards = share(shards, *part)
    journal.set_plan(
        JournalPlan(tuple(shard.name for shard in shards), tuple(label_names), tuple(rejected), dict(files))
    )
    return shards, label_names


def make_shards(
    pool: Pool,
    build: Building,
    journal: Journal,
    plan: Plan,
    shards: Sequence[PlannedShard],
    label_names: Sequence[str],
    options: PackOptions,
    report: Progress,
    published: Callable[[], None] | None = None,
) -> int:
    """Makes those of the shards that are not there, and gives their number.

    Args:
        published: called after each shard is on the disk; it takes shards away, so that not all need room at once.
    """
    clip_bytes = plan.bytes()
    missing = {shard.name: shard for shard in shards if journal.done(shard.name) is None}
    needed = {name: int(clip_bytes[shard.first : shard.last].sum()) for name, shard in missing.items()}
    if published is None:
        build.needed_bytes = sum(needed.values())
        if options.codec == "wav":
            build.check_space()
    total = sum(shard.last - shard.first for shard in shards)
    done = total - sum(shard.last - shard.first for shard in missing.values())
    rejected = len(journal.plan().rejected)
    jobs = (
        ShardJob(
            name=shard.name,
            tar=journal.place(shard.name),
            pieces=plan.pieces_of(shard),
            first_id=shard.first,
            codec=options.codec,
            minimum_samples=options.minimum_samples,
            label_names=label_names,
        )
        for shard in missing.values()
    )
    publishing, stopped = list[Future[None]](), Event()

    def progress(items: int) -> None:
        report(min(done + items, total), total, rejected)

    def publish(job: ShardJob, written: WrittenShard) -> None:
        journal.publish(job.name, job.first_id, written)
        if published is None:
            build.needed_bytes -= needed[job.name]
        elif not stopped.is_set():
            try:
                published()
            except UserError:
                stopped.set()
                raise

    with ThreadPoolExecutor(1) as publisher:
        try:
            progress(0)
            for job, written in pool.answers(jobs, progress):
                assert isinstance(job, ShardJob)
                publishing.append(publisher.submit(publish, job, written))
                while len(publishing) > PUBLISHING:
                    publishing.pop(0).result()
                done, rejected = done + len(job.pieces), rejected + len(written.rejected)
                progress(0)
            for future in publishing:
                future.result()
        except BaseException:  # what is made is still brought to the disk, and not sent
            stopped.set()
            raise
    return len(missing)
