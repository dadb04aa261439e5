"""What sounds like a recording: whole clips, or moments within them.   T' steps, D features.

Exact: every clip and every step is compared, by the cosine of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.embedding import Embedder, too_short
from unfused_fast.errors import UserError
from unfused_fast.explore.embeddings import kept_embeddings, unit_rows
from unfused_fast.models import Pool
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import decode_whole
from unfused_fast.shards.callbacks import OnProgress
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

LONG_RATIO, LONG_SECONDS = 10, 30.0
"""A recording of more seconds, and of this many times the query's, may hold it as a moment of many. Ours."""
LONGEST_QUERY_SECONDS = 600.0
"""Ours: a query is a sound that one has in mind; ten minutes are more than that."""
ITSELF = 0.999
"""Cosine from which a recording may be the query itself. Ours: batches move embeddings of equal samples by less."""
STEPS = 4096
"""Moments that are pooled at once. Ours: 34 MB at D = 2048."""


class Hit(NamedTuple):
    """A clip, or a moment of one."""

    row: int
    """Which of the rows."""
    seconds: float
    """At which it begins in its recording; in the clip, where its set does not say where that begins."""
    cosine: float


def find_similar(
    embedder: Embedder,
    rows: Sequence[SourceRow],
    query: Path,
    top: int,
    progress: OnProgress,
    frames: bool = False,
) -> tuple[list[Hit], list[str], bool]:
    """The `top` rows whose embeddings have the largest cosine to the query's, the largest first, ties in order; the
    sources of those left out because their samples are the query's; and whether any of the rows is much
    longer than the query.

    With `frames` moments as long as the query, no two of which overlap. A moment begins at any step of the encoder, and
    is pooled over its steps as the query is over its own. A recording shorter than the query is one moment. Memory does
    not grow with a recording's length, but for one number a step. Raises UserError: a query that cannot be used.
    """
    try:
        pcm = decode_whole(query, LONGEST_QUERY_SECONDS)
        if (short := too_short(len(pcm))) is not None:
            raise short
    except Rejected as error:
        if error.reason == Reason.TOO_LONG:
            why = f"longer than {LONGEST_QUERY_SECONDS:g} s; give a shorter query"
        else:
            why = f"{error}; give another recording" if query.exists() else "no such file; give another recording"
        raise UserError(f"{query}: {why}") from error
    wave, hits, itself = torch.from_numpy(pcm.astype(np.float32) / 32768), list[Hit](), list[str]()
    arrays = kept_embeddings(embedder, rows, progress, frames)
    long = bool((arrays["seconds"] > max(LONG_SECONDS, LONG_RATIO * len(pcm) / SAMPLE_RATE_HZ)).any())
    for hit in _moments(embedder, arrays, wave, top) if frames else _clips(embedder, arrays, wave):
        if len(hits) == top:
            break
        row = rows[hit.row]
        if hit.cosine > ITSELF and _is(row, pcm):
            itself.append(row.source)
        else:
            hits.append(hit._replace(seconds=hit.seconds + (row.begins or 0.0)))
    return hits, itself, long


def _is(row: SourceRow, pcm: NDArray[np.int16]) -> bool:
    """Whether a recording has these samples."""
    try:
        return np.array_equal(decode_whole(row.path, LONGEST_QUERY_SECONDS), pcm)
    except Rejected:  # such as one that is longer than any query
        return False


def _clips(embedder: Embedder, arrays: Mapping[str, Any], wave: Tensor) -> Iterator[Hit]:
    """All of them, the largest cosine first."""
    wanted = unit_rows(embedder.embed(wave, SAMPLE_RATE_HZ).cpu())[0]
    cosines = unit_rows(arrays["embeddings"][:]) @ wanted
    for place in torch.argsort(cosines, descending=True, stable=True).numpy():
        yield Hit(arrays["row"][place], 0.0, float(cosines[place]))


def _moments(embedder: Embedder, arrays: Mapping[str, Any], wave: Tensor, top: int) -> list[Hit]:
    """Up to `top` of each recording, the largest cosine first."""
    frames, _ = embedder.embed_frames(wave, SAMPLE_RATE_HZ)
    length, pool = frames.shape[1], embedder.pool
    wanted = unit_rows(windows(frames[0].cpu(), length, pool))[0]
    hits = list[Hit]()
    step_seconds = embedder.cutting.stride * embedder.config.frontend.hop_samples / SAMPLE_RATE_HZ
    for row, first, steps in zip(arrays["row"], arrays["first_row"], arrays["rows"].tolist(), strict=True):
        span, blocks = min(length, steps), list[Tensor]()
        for start in range(0, steps - span + 1, STEPS):
            stop = min(start + STEPS + span - 1, steps)
            values = torch.from_numpy(arrays["embeddings"][first + start : first + stop])
            blocks.append(unit_rows(windows(values, span, pool)) @ wanted)
        cosines = torch.cat(blocks).numpy()
        hits += [Hit(row, place * step_seconds, float(cosines[place])) for place in _apart(cosines, length, top)]
    return sorted(hits, key=lambda hit: -hit.cosine)


def windows(steps: Tensor, length: int, pool: Pool) -> Tensor:
    """(T', D) steps -> (T' - length + 1, D) pooled over each `length` consecutive ones, as model.pool_time."""
    totals = torch.nn.functional.pad(steps.double().cumsum(0), (0, 0, 1, 0))
    mean = ((totals[length:] - totals[:-length]) / length).float()
    if pool == "mean":
        return mean
    # (D, T') -> (D, T' - length + 1)
    largest = torch.nn.functional.max_pool1d(steps.T[None], length, stride=1)[0].T
    return largest if pool == "max" else mean + largest


def _apart(cosines: Any, length: int, top: int) -> list[int]:
    """The `top` best places of which no two are nearer than `length`, the best first."""
    left, found = cosines.copy(), list[int]()
    while len(found) < top and np.isfinite(best := left.max()):
        place = int(np.flatnonzero(left == best)[0])
        found.append(place)
        left[max(0, place - length + 1) : place + length] = -np.inf
    return found
