"""Recordings to embeddings on disk: decoded in worker processes, embedded in batches of similar length, kept in blocks.

N files, D features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfused_fast import __version__
from unfused_fast.embedding.embedder import Embedder, Pooled
from unfused_fast.embedding.formats import FORMATS, Format, write_rows
from unfused_fast.embedding.reading import Block, Part, Pcm, Reader, ReadJob, ahead
from unfused_fast.embedding.store import EmbeddingStore, FileRecord
from unfused_fast.errors import UserError, escaped
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.packing.workers import Workers, available_cores
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training import Interrupted

Progress = Callable[[int, int, int], None]
Result = NDArray[np.float32] | Pooled | Rejected
"""Of a piece: its steps (T', D), its pooled sums, or why there are none."""


def format_of(out: Path, frames: bool) -> Format:
    """What OUT's ending means. Raises UserError for another ending, and for frames in an npz."""
    ending = out.suffix.removeprefix(".")
    if ending not in FORMATS:
        raise UserError(f"{out}: want a name that ends in .npz, .parquet or .zarr")
    if frames and ending == "npz":
        raise UserError(f"{out}: --frames gives many rows a file, which .zarr and .parquet hold; name one of these")
    return next(known for known in FORMATS if known == ending)


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

    Decoded as `shard` decodes, to 16 bit at 16 kHz, so that a file's embedding is that of its clip in a shard set.
    Rows are in the order of `rows`, whatever the workers. Files that cannot be used are named in OUT.rejected.csv.
    What is in memory does not grow with the number of files or their length; a file beyond PIECE_FRAMES is embedded in
    pieces, see pieces.py. Whatever ends this function, `resume` goes on after the last saved block of at most
    BLOCK_FILES files or BLOCK_SECONDS of audio; a longer file is a block of its own.

    Args:
        workers: processes; None: one a core; 0: none, and a crash of a decoder ends the program.
        resume: go on with what an unfinished run left, or refuse where that was asked for something else. Without it,
            and without `overwrite`, what was asked for something else is replaced.
        overwrite: replace `out`, and what an unfinished run left (unless `resume`).
        stopping: asked after each batch whether to end.

    Returns:
        Facts for the screen: files, rows, rejected by reason, files a second.

    Raises:
        UserError: `out` is there or cannot be written, another request than the unfinished one, or no file is usable.
        Interrupted: `stopping` said so.
    """
    start, kind = time.perf_counter(), format_of(out, frames)
    if embedder.unit_norm:
        raise UserError(
            f"{embedder.name}: trained with data.norm = wave_l2, which scales a clip by all of it, but files are read "
            "in pieces; use unfused_fast.load and embed, or an encoder trained with data.norm=dataset"
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
    store = EmbeddingStore(out, request, embedder.scene_embedding_size, resume, overwrite)
    before = store.files_done
    try:
        _embed(embedder, rows, store, frames, workers, progress, stopping)
        rejected = dict(sorted(store.reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        if not store.rows:
            examples = "; ".join(f"{escaped(path)} ({text})" for path, _, text in list(store.rejections())[:3])
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
            raise UserError(f"{len(rows)} files, none of them usable: {reasons}; for example {examples}")

        def centres(steps: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.asarray(embedder.cutting.centre_ms(steps), np.float32)

        store.publish(write_rows(store, kind, about, centres if frames else None))
    finally:
        store.close()
    seconds = time.perf_counter() - start
    return {
        "out": str(out),
        "files": len(rows) - sum(rejected.values()),
        "rows": store.rows,
        "embedding_size": store.dim,
        "rejected": rejected,
        "seconds": round(seconds, 2),
        "files_per_second": round((len(rows) - before) / seconds, 1),
        "encoder": about["encoder"],
    }


def _embed(
    embedder: Embedder,
    rows: Sequence[SourceRow],
    store: EmbeddingStore,
    frames: bool,
    workers: int | None,
    progress: Progress | None,
    stopping: Callable[[], bool],
) -> None:
    """Everything that is not yet done, block by block."""
    count = available_cores() if workers is None else workers
    with Workers(count) as pool, Workers(min(count, 1)) as headers:
        reader = Reader(rows, embedder.cutting, headers)
        saver = _Saver(embedder, rows, store, frames)
        early: dict[int, tuple[list[Part], list[Result]]] = {}
        done = 0
        for job, answer in ahead(pool.answers(reader.jobs(store.files_done))):
            assert isinstance(job, ReadJob)
            if stopping():
                flags = "--resume --overwrite" if store.out.exists() else "--resume"
                raise Interrupted(f"{store.out}: stopped; {store.files_done} files are saved, go on with {flags}")
            early[job.number] = (list(job.parts), _results(embedder, job.parts, answer, frames))
            while done in early:
                saver.take(*early.pop(done))
                done += 1
                while reader.blocks[0].end <= done:
                    saver.save(reader.blocks.popleft())
                    if progress is not None:
                        progress(store.files_done, len(rows), sum(store.reasons.values()))
                    if not reader.blocks:
                        break
        while reader.blocks:  # of unusable files only
            saver.save(reader.blocks.popleft())


@torch.no_grad()
def _results(embedder: Embedder, parts: Sequence[Part], answer: Sequence[Pcm | Rejected], frames: bool) -> list[Result]:
    """One result of each part."""
    made: dict[int, Result] = {number: each for number, each in enumerate(answer) if isinstance(each, Rejected)}
    usable = [number for number in range(len(answer)) if number not in made]
    if usable:
        waves = [torch.from_numpy(np.asarray(answer[number], np.float32) / 32768) for number in usable]
        found = embedder.piece_steps([(wave, parts[number].piece) for wave, number in zip(waves, usable, strict=True)])
        if frames:
            steps = found.steps.cpu().numpy()
            made |= {number: steps[row, parts[number].piece.span] for row, number in enumerate(usable)}
        else:
            pooled = Pooled(*(values.cpu() for values in embedder.pooled(found)))
            made |= {number: pooled.taken(slice(row, row + 1)) for row, number in enumerate(usable)}
    return [made[number] for number in range(len(answer))]


class _Saver:
    """Puts results, which come in the order of jobs, into the store."""

    def __init__(self, embedder: Embedder, rows: Sequence[SourceRow], store: EmbeddingStore, frames: bool) -> None:
        self.embedder, self.rows, self.store, self.frames = embedder, rows, store, frames
        self.pooled: dict[int, Pooled] = {}
        self.places: dict[int, tuple[int, int]] = {}
        """Row -> first row and rows in the store, with frames."""
        self.rejected: dict[int, Rejected] = {}

    def take(self, parts: Sequence[Part], results: Sequence[Result]) -> None:
        """Results of a job. A recording of which one piece cannot be used is rejected whole."""
        for part, result in zip(parts, results, strict=True):
            row = part.row
            if row in self.rejected:
                continue
            if isinstance(result, Rejected):
                self.rejected[row] = result
                self.pooled.pop(row, None)
                if row in self.places:  # its pieces are the last that came
                    self.store.take_back(self.places.pop(row)[0])
            elif isinstance(result, Pooled):
                before = self.pooled.get(row)
                self.pooled[row] = result if before is None else _together(before, result)
            else:
                first = self.store.append(result)
                begun, count = self.places.get(row, (first, 0))
                self.places[row] = begun, count + len(result)

    def save(self, block: Block) -> None:
        """Commits a block whose jobs all came."""
        rejected = {**block.rejected, **self.rejected}
        files = list[FileRecord]()
        usable = [row for row in range(block.first, block.stop) if row in block.samples and row not in rejected]
        if not self.frames and usable:
            pooled = Pooled.together(self.pooled[row] for row in usable)
            first = self.store.append(pooled.embedding(self.embedder.pool).numpy())
            self.places = {row: (first + number, 1) for number, row in enumerate(usable)}
        for row in usable:
            seconds = block.samples[row] / SAMPLE_RATE_HZ
            files.append(FileRecord(self.rows[row].source, seconds, *self.places[row]))
        named = [(self.rows[row].source, str(reason.reason), str(reason)) for row, reason in sorted(rejected.items())]
        self.store.commit(files, named, block.stop)
        self.pooled, self.places, self.rejected = {}, {}, {}


def _together(first: Pooled, second: Pooled) -> Pooled:
    largest = torch.maximum(first.largest, second.largest)
    return Pooled(first.total + second.total, largest, first.steps + second.steps)
