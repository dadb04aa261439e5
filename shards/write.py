"""Rows -> a shard set: probe every file, plan, decode and pack in the order of the plan."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.errors import UserError
from unfused_fast.shards.audio_files import (
    MINIMUM_SAMPLES,
    PieceTask,
    Probe,
    Reason,
    Rejected,
    encode_many,
    probe_many,
)
from unfused_fast.shards.building import building
from unfused_fast.shards.clip_codec import SAMPLE_RATE_HZ
from unfused_fast.shards.plan import PlannedShard, piece_bytes, plan_pieces, plan_shards
from unfused_fast.shards.set_files import Rejections, SetWriter
from unfused_fast.shards.sources import SourceRow, check_split_name
from unfused_fast.shards.table import Manifest, ShardSet, clips_digest, write_clips
from unfused_fast.shards.workers import Workers, available_cores

Codec = Literal["wav", "flac"]
Statistics = Callable[[Iterator[NDArray[np.int16]]], Mapping[str, float]]
Progress = Callable[[int, int, int], None]

STATISTICS_SPLIT, STATISTICS_CLIPS = "train", 2048
"""Clips that `statistics` gets. Ours: the first ids are a random sample, and so many fix a log-mel's mean and std well
beyond what training notices."""
PROBE_CHUNK = 64
"""Files a task."""
DECODE_CHUNK_CLIPS, DECODE_CHUNK_SECONDS = 16, 40.0
"""Most clips and seconds of audio of a task. Ours: handing a task over costs about as much as a short clip."""
PROGRESS_EVERY = 16
LONGEST_SECONDS = 3600.0
"""Largest max_seconds. Ours: a clip is held in memory whole."""


@dataclass(frozen=True)
class PackResult:
    """What pack() did."""

    shard_set: ShardSet
    packed: int
    """Clips in the set."""
    rejected: dict[str, int]
    """Rows of rejected.csv by reason, most frequent first."""
    audio_seconds: float
    """Of the clips."""
    shard_bytes: int
    """Size of tars and indexes."""
    wall_seconds: float


def pack(
    rows: Sequence[SourceRow],
    out: Path,
    *,
    codec: Codec = "wav",
    max_seconds: float = 10.0,
    min_seconds: float = 0.1,
    seed: int = 0,
    workers: int | None = None,
    clips_per_shard: int | None = None,
    overwrite: bool = False,
    statistics: Statistics | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Packs audio files into a shard set at `out`. The same rows and options give the same bytes for any `workers`.

    The set is made in the sibling folder OUT.partial (what an earlier run left there is deleted) and takes OUT's place
    when it is complete. Files that cannot be used end in rejected.csv; the pieces of a long file are judged one by one.

    Args:
        max_seconds: longer files are cut into equal pieces, each a clip whose group is the file's.
        min_seconds: shorter clips are rejected.
        seed: of the shuffle.
        workers: processes; None: one a core. With 1 there are none, and a crash of a decoder ends the program.
        clips_per_shard: most clips of a tar; None: see plan.plan_shards.
        overwrite: replace the shard set at `out`.
        statistics: given the samples of the first training clips, (samples,) int16 each; what it returns becomes
            manifest.log_mel.
        progress: called with steps done, steps in all, rejections: up to the number of files while they are probed,
            then from 0 up to the number of clips.

    Raises:
        UserError: an option out of range, nothing usable, a full disk, or something at `out` that must stay.
    """
    started = time.perf_counter()
    _check_options(rows, codec, max_seconds, min_seconds, seed, workers, clips_per_shard)
    minimum_samples = round(min_seconds * SAMPLE_RATE_HZ)
    rejections = Rejections()
    report = progress or _no_progress
    with building(out, overwrite) as build:
        with Workers(workers or available_cores()) as pool:
            probed = _probe(pool, rows, minimum_samples, rejections, report)
            label_names = sorted({name for row, _ in probed for name in row.labels or [row.label] if name is not None})
            pieces = plan_pieces(probed, max_seconds, seed)
            build.needed_bytes = sum(map(piece_bytes, pieces))
            if codec == "wav":
                build.check_space()
            with SetWriter(build.folder, codec, label_names) as writer:
                _decode(pool, plan_shards(pieces, clips_per_shard), codec, minimum_samples, writer, rejections, report)
        splits = writer.splits()
        if not splits:
            raise UserError(f"{rejections.summary(len(rows))}; nothing was written: name audio that libsndfile reads")
        rejections.write(build.folder)
        clips = write_clips(build.folder, writer.columns)
        log_mel = None
        if statistics is not None and STATISTICS_SPLIT in splits:
            log_mel = dict(statistics(writer.first_clips(STATISTICS_SPLIT, STATISTICS_CLIPS)))
        manifest = Manifest(
            codec=codec,
            max_seconds=float(max_seconds),
            seed=seed,
            splits=splits,
            label_names=tuple(label_names),
            digest=clips_digest(clips, label_names),
            rejected=len(rejections.rows),
            log_mel=log_mel,
            written_by=f"unfused-fast {__version__}",
        )
        build.finish(manifest.to_json())
    return PackResult(
        shard_set=ShardSet(Path(out), manifest, clips),
        packed=clips.num_rows,
        rejected=rejections.by_reason(),
        audio_seconds=sum(info.seconds for info in splits.values()),
        shard_bytes=writer.shard_bytes,
        wall_seconds=time.perf_counter() - started,
    )


def _probe(
    pool: Workers, rows: Sequence[SourceRow], minimum_samples: int, rejections: Rejections, report: Progress
) -> list[tuple[SourceRow, Probe]]:
    """Headers of all files; the rows whose files can be decoded, as far as headers tell."""
    paths = [row.path for row in rows]
    chunks = (paths[start : start + PROBE_CHUNK] for start in range(0, len(paths), PROBE_CHUNK))
    probed = []
    answers = pool.in_order(probe_many, chunks)
    for done, (row, (_, answer)) in enumerate(zip(rows, answers, strict=True), 1):
        if isinstance(answer, Probe) and answer.samples < minimum_samples:
            answer = Rejected(Reason.TOO_SHORT, f"{answer.samples / SAMPLE_RATE_HZ:.3f} s")
        if isinstance(answer, Rejected):
            rejections.add(row.source, answer)
        else:
            probed.append((row, answer))
        if done % PROGRESS_EVERY == 0 or done == len(rows):
            report(done, len(rows), len(rejections.rows))
    return probed


def _decode(
    pool: Workers,
    shards: Sequence[PlannedShard],
    codec: Codec,
    minimum_samples: int,
    writer: SetWriter,
    rejections: Rejections,
    report: Progress,
) -> None:
    """Decodes the pieces and writes them, shard by shard."""
    placed = [(shard, piece) for shard in shards for piece in shard.pieces]
    tasks = (
        PieceTask(piece.row.path, piece.frames, piece.start, piece.stop, codec, minimum_samples) for _, piece in placed
    )
    answers = pool.in_order(encode_many, _chunks(tasks))
    current = None
    for done, ((shard, piece), (_, answer)) in enumerate(zip(placed, answers, strict=True), 1):
        if shard is not current:
            writer.end_shard()
            current = shard
        if isinstance(answer, Rejected):
            rejections.add(piece.row.source, answer, piece.number, piece.pieces)
        else:
            writer.add(piece, answer)
        if done % PROGRESS_EVERY == 0 or done == len(placed):
            report(done, len(placed), len(rejections.rows))


def _chunks(tasks: Iterator[PieceTask]) -> Iterator[list[PieceTask]]:
    chunk: list[PieceTask] = []
    samples = 0
    for task in tasks:
        chunk.append(task)
        samples += task.stop - task.start
        if len(chunk) == DECODE_CHUNK_CLIPS or samples >= DECODE_CHUNK_SECONDS * SAMPLE_RATE_HZ:
            yield chunk
            chunk, samples = [], 0
    if chunk:
        yield chunk


def _check_options(
    rows: Sequence[SourceRow],
    codec: str,
    max_seconds: float,
    min_seconds: float,
    seed: int,
    workers: int | None,
    clips_per_shard: int | None,
) -> None:
    if not rows:
        raise UserError("no files to pack; name a folder or a CSV with at least one audio file")
    for split in {row.split for row in rows}:
        check_split_name(split, "the rows to pack")
    shortest = MINIMUM_SAMPLES / SAMPLE_RATE_HZ
    checks = (
        (codec in ("wav", "flac"), f"codec {codec}, but a shard set holds wav or flac; choose one of them"),
        (
            math.isfinite(min_seconds) and min_seconds >= shortest,
            f"min_seconds {min_seconds:g}, but a log-mel needs {shortest:.4f} s or more; take the default 0.1",
        ),
        (
            2 * min_seconds <= max_seconds <= LONGEST_SECONDS,
            f"max_seconds {max_seconds:g}, but it must lie between {2 * min_seconds:g}, twice min_seconds, and "
            f"{LONGEST_SECONDS:g}",
        ),
        (seed >= 0, f"seed {seed}, but a seed is 0 or more"),
        (workers is None or workers >= 1, f"{workers} workers, but at least 1 is needed; leave it out for one a core"),
        (
            clips_per_shard is None or clips_per_shard >= 1,
            f"{clips_per_shard} clips per shard, but at least 1 is needed",
        ),
    )
    for fine, message in checks:
        if not fine:
            raise UserError(message)


def _no_progress(done: int, total: int, rejected: int) -> None:
    """Nobody watches."""
