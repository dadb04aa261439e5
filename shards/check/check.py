"""Checks that a shard set is unchanged since it was written, and fit to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from unfused_fast.errors import UserError
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.check.findings import Finding, Kind, Tally, finding
from unfused_fast.shards.check.shard import DigestTask, ShardReport, ShardTask
from unfused_fast.shards.check.table import table_damage, table_warnings
from unfused_fast.shards.packing.workers import Job, Workers, worker_count
from unfused_fast.shards.sets.shard_files import index_path
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, Manifest, read_clips, read_manifest

SPECTRUM_CLIPS = 256
"""Clips that are examined for DC offset and band, and decoded if they are FLAC. Ours: ids are shuffled, so these are a
random sample, in which a fault of one clip in a hundred is found with a chance of 92 %; all of them would take longer
than reading the set."""
NARROW_SHARE = 0.02
"""Of the clips examined: fewer with a narrow band are not reported. Ours: of clean instrument notes 1 % look so."""
SECONDS_PER_CLIP = 120.0
"""Longest that one clip may take. Ours: a clip is an hour long at most, and decoded in seconds."""


@dataclass(frozen=True)
class Checked:
    """What check() found."""

    corrupt: list[Finding]
    """What differs from what was written; empty: the set is intact."""
    warnings: list[Finding]
    """What may harm training or distort its results."""
    clips: int = 0
    """In the clips table."""


class _Span(NamedTuple):
    """The part of the clips table that a shard holds, by the first lines of its index."""

    tar: Path
    split: str
    start: int
    clips: int


def check(
    directory: Path, *, every_clip: bool = False, workers: int | None = None, progress: OnProgress = no_progress
) -> Checked:
    """Reads all of a set and compares: tars with indexes, members with the table, the table with the manifest.

    Args:
        every_clip: every clip is decoded and measured, not a sample of SPECTRUM_CLIPS.
        workers: processes; None: one a core; 0: none, and a crash of a decoder ends the program.
        progress: called with clips done, clips in all, findings so far.

    Raises:
        UserError: `workers` is less than 0. Whatever is wrong with the set is a finding.
    """
    kind, name, processes = Kind.MANIFEST, MANIFEST, worker_count(workers)
    try:
        manifest = read_manifest(directory)
        kind, name = Kind.TABLE, CLIPS
        clips = read_clips(directory)
    except UserError as error:
        return Checked([Finding(kind, str(error), str(directory / name))], [])
    corrupt, measured = list(table_damage(directory, manifest, clips)), Tally()
    spans = list(_spans(directory, manifest, clips.num_rows))
    every = 1 if every_clip else max(1, -(-clips.num_rows // SPECTRUM_CLIPS))
    digest: Job[ShardReport | str] = DigestTask(directory, manifest.label_names)
    shards: Iterator[Job[ShardReport | str]] = (_task(span, manifest, clips, every) for span in spans)
    reports: dict[Path, ShardReport] = {}
    with Workers(min(processes, len(spans) + 1), SECONDS_PER_CLIP) as pool:
        for task, answer in pool.answers(chain([digest], shards)):
            if isinstance(task, ShardTask) and isinstance(answer, ShardReport):
                reports[task.tar] = answer
            elif answer != manifest.digest:
                corrupt.append(finding(Kind.DIGEST, directory / CLIPS, "its digest does not match the manifest"))
            faults = sum(bool(report.broken or report.problems.counts) for report in reports.values())
            progress(sum(report.clips for report in reports.values()), clips.num_rows, len(corrupt) + faults)
    for span in spans:
        report = reports[span.tar]
        for kind, times in report.problems.counts.items():
            summary = f"{times} of {report.clips} clips" if times > 1 else ""
            corrupt.append(finding(kind, span.tar, summary, report.problems.examples[kind], times))
        corrupt += [report.broken] if report.broken is not None else []
        measured.merge(report.warnings)
    corrupt += _order_damage(directory, manifest, spans, reports)
    decoded, spectra = (sum(getattr(report, name) for report in reports.values()) for name in ("decoded", "spectra"))
    warnings = [*table_warnings(directory, manifest, clips), *_audio_warnings(directory, measured, decoded, spectra)]
    return Checked(corrupt, warnings, clips.num_rows)


def _spans(directory: Path, manifest: Manifest, rows: int) -> Iterator[_Span]:
    """What each shard holds by its index: the clips from its first key on, or after the shard before it."""
    first_of_split = 0
    for split, info in manifest.splits.items():
        start = first_of_split
        for name in info.shards:
            clips, first = _head(index_path(directory / name))
            start = first if first is not None and first < rows else start
            yield _Span(directory / name, split, start, clips)
            start += clips
        first_of_split += info.clips


def _head(index: Path) -> tuple[int, int | None]:
    """(count, first clip id) by the first two lines of an index; (0, None) if unreadable, which a worker reports."""
    try:
        with index.open("rb") as file:
            words, members = file.readline(100).split(), file.readline(1000).split(b" ")
    except OSError:
        return 0, None
    count = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
    key = members[3].partition(b".")[0] if len(members) > 3 else b""
    return count, int(key) if key.isdigit() else None


def _task(span: _Span, manifest: Manifest, clips: pa.Table, spectrum_every: int) -> ShardTask:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, clips.schema) as writer:
        writer.write_table(clips.slice(span.start, span.clips))
    stored = stream.getvalue().to_pybytes()
    return ShardTask(span.tar, span.split, manifest.codec, manifest.label_names, stored, spectrum_every)


def _order_damage(
    directory: Path, manifest: Manifest, spans: list[_Span], reports: dict[Path, ShardReport]
) -> Iterator[Finding]:
    """Whether the shards of each split, as far as they are readable, hold its clips once and in order."""
    first_of_split = 0
    for split, info in manifest.splits.items():
        place: int | None = first_of_split
        for span in (span for span in spans if span.split == split):
            if reports[span.tar].broken is not None:
                place = None  # how many clips it had is not known
                continue
            if place is not None and span.start != place:
                summary = f"begins with clip {span.start}, but clip {place} was expected here: shards were renamed"
                yield finding(Kind.ORDER, span.tar, summary)
            place = (span.start if place is None else place) + span.clips
        first_of_split += info.clips
        if place is not None and place != first_of_split:
            held = place - first_of_split + info.clips
            summary = f"split {split} has {held} clips in its shards, but {info.clips} in the manifest"
            yield finding(Kind.COUNT, directory, summary)


def _audio_warnings(directory: Path, measured: Tally, decoded: int, spectra: int) -> Iterator[Finding]:
    sentences = {
        Kind.QUIET: f"of {decoded} clips examined are almost silent, below -60 dB",
        Kind.DC_OFFSET: f"of {spectra} clips examined have a DC offset: their mean is not zero",
        Kind.NARROW_BAND: f"of {spectra} clips examined were recorded at a lower rate than 16000 Hz",
    }
    for kind, sentence in sentences.items():
        count = measured.counts.get(kind, 0)
        if count and (kind is not Kind.NARROW_BAND or count >= NARROW_SHARE * spectra):
            yield finding(kind, directory, f"{count} {sentence}", measured.examples[kind], count)
