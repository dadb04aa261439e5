"""Recordings to embeddings on disk: decoded in worker processes, embedded in batches of similar length, saved in
blocks.   D features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from unfused_fast import __version__
from unfused_fast.console import counted
from unfused_fast.distributed import ALONE, RankLost, Ranks
from unfused_fast.embedding import reading
from unfused_fast.embedding.embedder import Embedder, Pooled
from unfused_fast.embedding.formats import format_of, write_result
from unfused_fast.embedding.parts import DoneFile, EmbeddingParts, check_place
from unfused_fast.embedding.reading import Block, Pcm, ReadJob, ahead, blocks_of
from unfused_fast.errors import Interrupted, UserError, escaped
from unfused_fast.models import Pool
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.packing.workers import Workers, keep_freed_memory, worker_count
from unfused_fast.shards.sources.location import state_of
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow

Progress = Callable[[int, int, int], None]
Results = Pooled | IO[bytes]
"""Results of the current block: its files' embeddings, or a file of their steps (4 D bytes each)."""


def embed_files(
    embedder: Embedder,
    rows: Sequence[SourceRow],
    out: Path,
    *,
    frames: bool = False,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    stopping: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Embeds every recording, and publishes `out` when all are done: one row a file, or with `frames` one a step.

    Decoding is that of `shard`, to 16 bit at 16 kHz, so that a file's embedding equals that of its clip in a shard set.
    Rows are in the order of `rows`, for any number of workers. Files that cannot be used are listed in
    OUT.rejected.csv. Memory does not grow with the number of files or their length; a file longer than PIECE_FRAMES is
    embedded in pieces, see pieces.py. After any interruption the same call resumes after the last saved block, of at
    most BLOCK_FILES files or BLOCK_SECONDS of audio; a longer file is a separate block. It does so only where the files
    have the sizes and times that they had; those behind URLs count by their names.

    Several `ranks` embed a part of the files each, group by group of BLOCK_FILES; rank 0 publishes. Blocks and batches
    do not depend on the number of ranks, and so the result is the same bits on machines of one kind.

    Args:
        workers: processes; None: one per core, of several ranks each its part of them; 0: none, and then a crash of a
            decoder ends the program.
        overwrite: replace `out`; without `resume` also discard an unfinished run, which is resumed otherwise.
        stopping: called after each batch; true ends the run.

    Returns:
        Values to print: files, rows, rejected by reason, files per second.

    Raises:
        UserError: `out` is there or cannot be written, the unfinished run had another request, or no file is usable.
        Interrupted: `stopping` returned true.
    """
    start, kind = time.perf_counter(), format_of(out, frames)
    if embedder.unit_norm:
        raise UserError(
            f"{embedder.name}: trained with data.norm = wave_l2, which needs the norm of a whole clip, but files are "
            "read in pieces; use unfused_fast.load and embed, or an encoder trained with data.norm=dataset"
        )
    if frames:
        embedder.refuse_frames()
    about = {
        "encoder": embedder.digest,
        "pool": None if frames else embedder.pool,
        "features": embedder.features,
        "frames": frames,
        "sample_rate": embedder.sample_rate,
        "written_by": f"unfused-fast {__version__}",
    }
    sources = hashlib.sha256()
    for row in rows:
        sources.update(row.source.encode() + b"\n")
    request = {**about, "format": kind, "files": len(rows), "sources": sources.hexdigest()}
    request["sizes and times of files"] = ranks.first(lambda: _states(rows))  # copies on other machines differ in times
    ranks.first(lambda: check_place(out, overwrite))
    if len({*ranks.texts(f"{request['sources']} {request['encoder']}")}) > 1:
        raise UserError(
            "the processes see different files or encoders; give paths under which all of them see the same"
        )
    parts = EmbeddingParts(out, request, embedder.scene_embedding_size, overwrite and not resume, ranks)
    before, groups = parts.done, parts.missing(reading.BLOCK_FILES)
    seconds_before = sum(file.seconds for file in parts.files)
    own = groups[ranks.share.of(len(groups))]

    def publish() -> dict[str, Any]:
        if lost := sum(map(len, parts.missing(reading.BLOCK_FILES))):
            raise UserError(
                f"{out}: {counted(lost, 'file')} that other processes embedded are not there for the first one; name "
                "a place on storage that all of them share"
            )
        rejected = dict(sorted(parts.reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        if not parts.rows:
            examples = "; ".join(f"{escaped(file.path)} ({file.detail})" for file in parts.files[:3])
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
            raise UserError(f"{counted(len(rows), 'file')}, none of them usable: {reasons}; for example {examples}")
        parts.publish(write_result(parts, kind, about, embedder.cutting.centre_ms if frames else None))
        seconds = time.perf_counter() - start
        return {
            "out": str(out),
            "files": len(rows) - sum(rejected.values()),
            "rows": parts.rows,
            "embedding_size": parts.dim,
            "rejected": rejected,
            "seconds": round(seconds, 2),
            "files_per_second": round((len(rows) - before) / seconds, 1),
            "times_real_time": round((sum(file.seconds for file in parts.files) - seconds_before) / seconds, 1),
            "encoder": about["encoder"],
        }

    try:
        ended = ranks.every(
            lambda: _embed(embedder, rows, own, parts, frames, _workers(workers, ranks), progress, stopping)
        )
        stopped = not all(map(bool, ranks.texts("ended" if ended else "")))
        ranks.first(parts.read)  # what all have saved, in order
        if stopped:
            raise Interrupted(ranks.first(lambda: _how_to_resume(parts)))
        return dict(ranks.first(publish))
    except RankLost as error:
        raise RankLost(f"{error}; what is saved is kept; run the same command again") from error
    finally:
        parts.close()


def _states(rows: Sequence[SourceRow]) -> str:
    """sha256 (hex) of the sizes and times of the rows' files."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{state_of(row.path)}\n".encode())
    return digest.hexdigest()


def _workers(given: int | None, ranks: Ranks) -> int:
    """Processes of this rank that decode."""
    return worker_count(given) if given is not None else max(1, worker_count(None) // ranks.local_size)


def _how_to_resume(parts: EmbeddingParts) -> str:
    if not parts.rows:
        return f"{parts.out}: stopped before a file was saved; run the same command again"
    flags = " with --resume --overwrite" if parts.out.exists() else ""
    return f"{parts.out}: stopped; {counted(parts.done, 'file')} saved; run the same command again{flags} to continue"


def _embed(
    embedder: Embedder,
    rows: Sequence[SourceRow],
    groups: Sequence[range],
    parts: EmbeddingParts,
    frames: bool,
    workers: int,
    progress: Progress | None,
    stopping: Callable[[], bool],
) -> bool:
    """Embeds the files of some groups; False: it was stopped. Batches arrive as they are decoded; blocks are saved in
    order.
    """
    blocks, results = dict[int, Block](), dict[int, Results]()
    due, total = groups[0].start if groups else 0, parts.done + sum(map(len, groups))
    after = {group.stop: following.start for group, following in pairwise(groups)}
    keep_freed_memory()

    def jobs() -> Iterator[ReadJob]:
        for block in blocks_of(rows, groups, embedder.cutting, frames, headers):
            found = block.jobs(embedder.batch_frames)
            blocks[block.first] = block
            yield from found

    def save() -> None:
        nonlocal due
        while (block := blocks.get(due)) is not None and not block.waiting:
            due += _save(blocks.pop(due), results.pop(due, None), rows, embedder.pool, parts)
            due = after.get(due, due)
            if progress is not None:
                progress(parts.done, total, parts.reasons.total())

    with (
        Workers(workers) as pool,
        Workers(min(workers, 1)) as headers,
        closing(ahead(pool.answers(jobs()))) as answers,  # no more jobs are created when the workers end
    ):
        for job, answer in answers:
            if stopping():
                return False
            assert isinstance(job, ReadJob)
            block = blocks[job.block]
            if job.block not in results:
                results[job.block] = (
                    parts.rows_path(job.block).open("wb")
                    if frames
                    else Pooled(len(block.samples), embedder.layer_sizes, embedder.device)
                )
            _embed_batch(embedder, block, job, answer, results[job.block])
            block.waiting -= 1
            save()
        save()  # blocks of unusable files only
    return True


@torch.no_grad()
def _embed_batch(
    embedder: Embedder, block: Block, job: ReadJob, answer: Sequence[Pcm | Rejected], results: Results
) -> None:
    """A recording with an unusable piece is rejected as a whole."""
    usable, waves = [], []
    for each, found in zip(job.pieces, answer, strict=True):
        if isinstance(found, Rejected):
            block.rejected.setdefault(each.row, found)
        else:
            usable.append(each)
            waves.append((torch.from_numpy(np.asarray(found, np.float32) / 32768), each.piece))
    if not usable:
        return
    made = embedder.piece_steps(waves)
    if isinstance(results, Pooled):
        results.add([each.place for each in usable], made)
        return
    for values, each in zip(made[0].steps.cpu().numpy(), usable, strict=True):
        results.seek(4 * values.shape[1] * each.place)
        results.write(values[each.piece.span].tobytes())


def _save(block: Block, results: Results | None, rows: Sequence[SourceRow], pool: Pool, parts: EmbeddingParts) -> int:
    """Saves a block; how many files it has. Rows of recordings that cannot be used are written too, and not read."""
    if isinstance(results, Pooled):
        parts.rows_path(block.first).write_bytes(results.embedding(pool).cpu().numpy().tobytes())
    elif results is not None:
        with results:
            results.truncate(4 * parts.dim * sum(block.counts.values()))
    files = []
    for row in sorted(block.samples.keys() | block.rejected.keys()):
        seconds, why = block.samples.get(row, 0) / SAMPLE_RATE_HZ, block.rejected.get(row)
        reason = () if why is None else (str(why.reason), str(why))
        files.append(DoneFile(rows[row].source, seconds, block.counts.get(row, 0), *reason))
    parts.save(block.first, files)
    return len(files)
