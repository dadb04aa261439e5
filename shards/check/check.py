"""Checks that a shard set is unchanged since it was written, and fit to train on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.shards.callbacks import OnProgress, no_progress
from unfused_fast.shards.check.findings import Examples, Finding, Kind, finding
from unfused_fast.shards.check.shard import ShardReport, ShardTask
from unfused_fast.shards.check.table import table_damage, table_warnings
from unfused_fast.shards.packing.finish import STATISTICS_CLIPS, STATISTICS_SPLIT, Statistics, stored_clips
from unfused_fast.shards.packing.workers import Workers, worker_count
from unfused_fast.shards.sets.shard_files import index_path
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, Manifest, clips_digest, read_clips, read_manifest

SPECTRUM_CLIPS = 256
"""Clips that are examined for DC offset and band, and decoded if they are FLAC. Ours: ids are shuffled, so these are a
random sample, in which a fault of one clip in a hundred is found with a chance of 92 %; all of them would take longer
than reading the set."""
NARROW_SHARE = 0.02
"""Of the clips examined: fewer with a narrow band are not reported. Ours: of clean instrument notes 1 % look so."""
STATISTICS_SLACK = 0.01
"""Ours: what log-mels differ by on another machine is a hundredth of it, and training does not notice it."""
_HEAD = re.compile(rb"\S+ (\d{1,9})\n\S+ \d+ \d+ (\d{9})\.")
"""Of an index: how many clips it has, and the id of the first."""


@dataclass(frozen=True)
class Checked:
    """What check() found."""

    corrupt: list[Finding]
    """What differs from what was written; empty: the set is intact."""
    warnings: list[Finding]
    """What may harm training or distort its results."""
    clips: int
    """In the clips table."""


_Span = tuple[Path, str, int, int]
"""A tar, its split, and the part of the clips table that it holds by its index: first row, and how many."""


def check(
    directory: Path,
    *,
    every_clip: bool = False,
    workers: int | None = None,
    statistics: Statistics | None = None,
    progress: OnProgress = no_progress,
) -> Checked:
    """Reads all of a set and compares: tars with indexes, members with the table, the table with the manifest.

    Args:
        every_clip: every clip is decoded and measured, not a sample of SPECTRUM_CLIPS.
        workers: processes; None: one a core; 0: none, and a crash of a decoder ends the program.
        statistics: as pack() had it: manifest.log_mel is compared with what it gives for the same clips.
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
        return Checked([Finding(kind, str(error), str(directory / name))], [], 0)
    spans, order_damage = _spans(directory, manifest, clips.num_rows)
    every = 1 if every_clip else max(1, -(-clips.num_rows // SPECTRUM_CLIPS))
    reports: dict[Path, ShardReport] = {}
    with ThreadPoolExecutor(1) as beside, Workers(min(processes, len(spans))) as pool:
        digest = beside.submit(clips_digest, clips, manifest.label_names)
        corrupt = list(table_damage(directory, manifest, clips))
        for _, report in pool.answers(_task(span, manifest, clips, every) for span in spans):
            reports[report.tar] = report
            faults = sum(bool(done.broken or done.problems) for done in reports.values())
            progress(sum(done.clips for done in reports.values()), clips.num_rows, len(corrupt) + faults)
        if digest.result() != manifest.digest:
            corrupt.append(finding(Kind.DIGEST, directory / CLIPS, "its digest does not match the manifest"))
    measured: Examples = {}
    for report in (reports[tar] for tar, *_ in spans):
        for kind, examples in report.problems.items():
            summary = f"{len(examples)} of {report.clips} clips" if len(examples) > 1 else ""
            corrupt.append(finding(kind, report.tar, summary, examples, len(examples)))
        corrupt += [report.broken] if report.broken is not None else []
        for kind, examples in report.warnings.items():
            measured.setdefault(kind, []).extend(examples)
    decoded, spectra = (sum(getattr(report, name) for report in reports.values()) for name in ("decoded", "spectra"))
    warnings = [*table_warnings(directory, manifest, clips), *_audio_warnings(directory, measured, decoded, spectra)]
    corrupt += order_damage
    if statistics is not None and not corrupt:
        corrupt += _statistics_damage(directory, manifest, statistics)
    return Checked(corrupt, warnings, clips.num_rows)


def _statistics_damage(directory: Path, manifest: Manifest, statistics: Statistics) -> Iterator[Finding]:
    """Of an intact set: statistics that are not those of its clips."""
    if (there := manifest.log_mel) is not None and STATISTICS_SPLIT in manifest.splits:
        shards = manifest.splits[STATISTICS_SPLIT].shards
        found = statistics(islice(stored_clips(directory, shards, manifest.codec), STATISTICS_CLIPS))
        if any(abs(found[name] - there[name]) > STATISTICS_SLACK for name in ("mean", "std")):
            told, own = (f"mean {of['mean']:g} and std {of['std']:g}" for of in (there, found))
            summary = f"log_mel has {told}, but the clips have {own}; pack the set again with --overwrite"
            yield finding(Kind.MANIFEST, directory / MANIFEST, summary)


def _spans(directory: Path, manifest: Manifest, rows: int) -> tuple[list[_Span], list[Finding]]:
    """The clips that each shard holds by its index; whether those of a split are its clips, once and in order."""
    spans, damage, end = list[_Span](), list[Finding](), 0
    for split, info in manifest.splits.items():
        start, end = end, end + info.clips
        place: int | None = start  # None behind a shard whose number of clips is not known
        for tar in (directory / name for name in info.shards):
            first, clips = _head(index_path(tar))
            if place is not None and first not in (None, place):
                summary = f"begins with clip {first}, but clip {place} was expected here: shards were renamed"
                damage.append(finding(Kind.ORDER, tar, summary))
            start = first if first is not None and first < rows else start
            spans.append((tar, split, start, clips))
            place = None if first is None else clips + (start if place is None else place)
            start += clips
        if place is not None and place != end:
            held = counted(place - end + info.clips, "clip")
            summary = f"split {split} has {held} in its shards, but {info.clips} in the manifest"
            damage.append(finding(Kind.COUNT, directory, summary))
    return spans, damage


def _head(index: Path) -> tuple[int | None, int]:
    """(first clip id, count) by the first two lines of an index; (None, 0) if unreadable, which a worker reports."""
    try:
        with index.open("rb") as file:
            head = _HEAD.match(file.read(1000))
    except OSError:
        head = None
    return (None, 0) if head is None else (int(head[2]), int(head[1]))


def _task(span: _Span, manifest: Manifest, clips: pa.Table, spectrum_every: int) -> ShardTask:
    (tar, split, start, count), stream = span, pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, clips.schema) as writer:
        writer.write_table(clips.slice(start, count))
    rows = stream.getvalue().to_pybytes()
    return ShardTask(tar, split, manifest.codec, manifest.label_names, rows, spectrum_every)


def _audio_warnings(directory: Path, measured: Examples, decoded: int, spectra: int) -> Iterator[Finding]:
    sentences = {
        Kind.QUIET: f"of {counted(decoded, 'clip')} examined are almost silent, below -60 dB",
        Kind.DC_OFFSET: f"of {counted(spectra, 'clip')} examined have a DC offset: their mean is not zero",
        Kind.NARROW_BAND: f"of {counted(spectra, 'clip')} examined were recorded at a lower rate than 16000 Hz",
    }
    for kind, sentence in sentences.items():
        examples = measured.get(kind, [])
        if examples and (kind is not Kind.NARROW_BAND or len(examples) >= NARROW_SHARE * spectra):
            yield finding(kind, directory, f"{len(examples)} {sentence}", examples, len(examples))
