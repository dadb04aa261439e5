"""Recordings to embeddings on disk: decoded in worker processes, embedded in batches of similar length, saved in
blocks.   D features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from unfused_fast import __version__
from unfused_fast.console import counted
from unfused_fast.embedding.embedder import Embedder, Pooled
from unfused_fast.embedding.formats import format_of, write_result
from unfused_fast.embedding.parts import DoneFile, EmbeddingParts, check_place
from unfused_fast.embedding.reading import Block, Pcm, ReadJob, ahead, blocks_of
from unfused_fast.errors import UserError, escaped
from unfused_fast.models import Pool
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.packing.workers import Workers, keep_freed_memory, worker_count
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training import Interrupted

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
) -> dict[str, Any]:
    """Embeds every recording, and publishes `out` when all are done: one row a file, or with `frames` one a step.

    Decoding is that of `shard`, to 16 bit at 16 kHz, so that a file's embedding equals that of its clip in a shard set.
    Rows are in the order of `rows`, for any number of workers. Files that cannot be used are listed in
    OUT.rejected.csv. Memory does not grow with the number of files or their length; a file longer than PIECE_FRAMES is
    embedded in pieces, see pieces.py. After any interruption the same call resumes after the last saved block, of at
    most BLOCK_FILES files or BLOCK_SECONDS of audio; a longer file is a separate block.

    Args:
        workers: processes; None: one per core; 0: none, and then a crash of a decoder ends the program.
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
    about = {
        "encoder": embedder.digest,
        "pool": None if frames else embedder.pool,
        "frames": frames,
        "sample_rate": embedder.sample_rate,
        "written_by": f"unfused-fast {__version__}",
    }
    sources = hashlib.sha256()
    for row in rows:
        sources.update(row.source.encode() + b"\n")
    request = {**about, "format": kind, "files": len(rows), "sources": sources.hexdigest()}
    check_place(out, overwrite)
    parts = EmbeddingParts(out, request, embedder.scene_embedding_size, overwrite and not resume)
    before = len(parts.files)
    try:
        _embed(embedder, rows, parts, frames, workers, progress, stopping)
        rejected = dict(sorted(parts.reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        if not parts.rows:
            examples = "; ".join(f"{escaped(file.path)} ({file.detail})" for file in parts.files[:3])
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
            raise UserError(f"{counted(len(rows), 'file')}, none of them usable: {reasons}; for example {examples}")
        parts.publish(write_result(parts, kind, about, embedder.cutting.centre_ms if frames else None))
    finally:
        parts.close()
    seconds = time.perf_counter() - start
    return {
        "out": str(out),
        "files": len(rows) - sum(rejected.values()),
        "rows": parts.rows,
        "embedding_size": parts.dim,
        "rejected": rejected,
        "seconds": round(seconds, 2),
        "files_per_second": round((len(rows) - before) / seconds, 1),
        "encoder": about["encoder"],
    }


def _embed(
    embedder: Embedder,
    rows: Sequence[SourceRow],
    parts: EmbeddingParts,
    frames: bool,
    workers: int | None,
    progress: Progress | None,
    stopping: Callable[[], bool],
) -> None:
    """Embeds the remaining files. Batches arrive as they are decoded; blocks are saved in order."""
    blocks, results = dict[int, Block](), dict[int, Results]()
    keep_freed_memory()

    def jobs() -> Iterator[ReadJob]:
        for block in blocks_of(rows, len(parts.files), embedder.cutting, frames, headers):
            found = block.jobs(embedder.batch_frames)
            blocks[block.first] = block
            yield from found

    def save() -> None:
        while (block := blocks.get(len(parts.files))) is not None and not block.waiting:
            _save(blocks.pop(block.first), results.pop(block.first, None), rows, embedder.pool, parts)
            if progress is not None:
                progress(len(parts.files), len(rows), parts.reasons.total())

    count = worker_count(workers)
    with (
        Workers(count) as pool,
        Workers(min(count, 1)) as headers,
        closing(ahead(pool.answers(jobs()))) as answers,  # no more jobs are created when the workers end
    ):
        for job, answer in answers:
            if stopping():
                if not parts.rows:
                    raise Interrupted(f"{parts.out}: stopped before a file was saved; give the same command again")
                flags = "--resume --overwrite" if parts.out.exists() else "--resume"
                raise Interrupted(f"{parts.out}: stopped; {len(parts.files)} files are saved, resume with {flags}")
            assert isinstance(job, ReadJob)
            block = blocks[job.block]
            if job.block not in results:
                results[job.block] = (
                    parts.rows_path(job.block).open("wb")
                    if frames
                    else Pooled(len(block.samples), parts.dim, embedder.device)
                )
            _embed_batch(embedder, block, job, answer, results[job.block])
            block.waiting -= 1
            save()
        save()  # blocks of unusable files only


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
    for values, each in zip(made.steps.cpu().numpy(), usable, strict=True):
        results.seek(4 * values.shape[1] * each.place)
        results.write(values[each.piece.span].tobytes())


def _save(block: Block, results: Results | None, rows: Sequence[SourceRow], pool: Pool, parts: EmbeddingParts) -> None:
    """Rows of recordings that cannot be used are written too, and not read."""
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
    parts.save(files)
