"""Recordings to embeddings on disk: decoded in worker processes, embedded in batches of similar length, saved in
blocks.   D features.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.console import counted
from unfused_fast.embedding.embedder import Embedder, Pooled
from unfused_fast.embedding.formats import format_of, write_result
from unfused_fast.embedding.parts import EmbeddedFile, EmbeddingParts, check_place
from unfused_fast.embedding.reading import Block, Pcm, ReadJob, ahead, blocks_of
from unfused_fast.errors import UserError, escaped
from unfused_fast.models import Pool
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.packing.workers import Workers, worker_count
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training import Interrupted

Progress = Callable[[int, int, int], None]
Results = Pooled | IO[bytes]
"""Results of the current block: its files' embeddings, or a file of their steps (4 D bytes each)."""
STEPS_AT_ONCE = 4096
"""Steps of a block in memory at once."""


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
    centres = embedder.cutting.centre_ms if frames else None
    check_place(out, overwrite)
    parts = EmbeddingParts(out, request, embedder.scene_embedding_size, centres, overwrite and not resume)
    before = parts.files_done
    try:
        _embed(embedder, rows, parts, workers, progress, stopping)
        rejected = dict(sorted(parts.reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        if not parts.rows:
            every = (each for block in parts.blocks() for each in block.rejected)
            examples = "; ".join(f"{escaped(path)} ({text})" for path, _, text in islice(every, 3))
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
            raise UserError(f"{counted(len(rows), 'file')}, none of them usable: {reasons}; for example {examples}")
        parts.publish(write_result(parts, kind, about))
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
    workers: int | None,
    progress: Progress | None,
    stopping: Callable[[], bool],
) -> None:
    """Embeds the remaining files. Batches arrive as they are decoded; blocks are saved in order."""
    blocks, results, frames = dict[int, Block](), dict[int, Results](), parts.centres is not None

    def jobs() -> Iterator[ReadJob]:
        for block in blocks_of(rows, parts.files_done, embedder.cutting, frames, headers):
            found = block.jobs()
            blocks[block.first] = block
            yield from found

    def save() -> None:
        while (block := blocks.get(parts.files_done)) is not None and not block.waiting:
            _save(blocks.pop(block.first), results.pop(block.first, None), rows, embedder.pool, parts)
            if progress is not None:
                progress(parts.files_done, len(rows), sum(parts.reasons.values()))

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
                raise Interrupted(f"{parts.out}: stopped; {parts.files_done} files are saved, resume with {flags}")
            assert isinstance(job, ReadJob)
            block = blocks[job.block]
            if job.block not in results:
                results[job.block] = (
                    tempfile.TemporaryFile(dir=parts.folder)  # noqa: SIM115
                    if frames
                    else Pooled(len(block.counts), parts.dim, embedder.device)
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
    usable = {row: count for row, count in block.counts.items() if row not in block.rejected}
    kept = np.repeat([row in usable for row in block.counts], [*block.counts.values()])
    embeddings: Iterator[NDArray[np.float32]] = iter(())
    if isinstance(results, Pooled):
        embeddings = iter([results.embedding(pool).cpu().numpy()[kept]])
    elif results is not None:
        embeddings = _kept_steps(results, kept, parts.dim)
    seconds = {row: block.samples[row] / SAMPLE_RATE_HZ for row in usable}
    files = [EmbeddedFile(rows[row].source, seconds[row], count) for row, count in usable.items()]
    rejected = [(rows[row].source, str(found.reason), str(found)) for row, found in sorted(block.rejected.items())]
    parts.save(files, rejected, embeddings)


def _kept_steps(steps: IO[bytes], kept: NDArray[np.bool_], dim: int) -> Iterator[NDArray[np.float32]]:
    """(n, D) of the steps that are kept, in parts."""
    with steps:
        steps.seek(0)
        for first in range(0, len(kept), STEPS_AT_ONCE):
            some = kept[first : first + STEPS_AT_ONCE]
            yield np.frombuffer(steps.read(4 * dim * len(some)), np.float32).reshape(-1, dim)[some]
