"""What sounds like a recording: whole clips, or moments within them.   N clips, T' steps, D features.

Exact: every clip and every step is compared, by the cosine of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfused_fast.embedding import Embedder
from unfused_fast.errors import UserError
from unfused_fast.explore.embeddings import kept_embeddings, unit_rows
from unfused_fast.models import Pool
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import decode_samples, probe
from unfused_fast.shards.callbacks import OnProgress
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow

LONGEST_QUERY_SECONDS = 600.0
"""Ours: a query is a sound that one has in mind; ten minutes are more than that."""

STEPS = 4096
"""Moments that are pooled at once. Ours: 34 MB at D = 2048."""


class Hit(NamedTuple):
    """A clip, or a moment of one."""

    row: int
    """Which of the rows."""
    seconds: float
    """Where it begins in the recording; 0 for a whole one."""
    cosine: float


def read_query(path: Path) -> Tensor:
    """(samples,) float32 at 16 kHz, decoded as `shard` and `embed` do. Raises UserError for what cannot be used."""
    try:
        found = probe(path, LONGEST_QUERY_SECONDS)
        pcm = decode_samples(path, found.frames, 0, found.samples)
    except Rejected as error:
        raise UserError(f"{path}: {error}; give a recording of at most {LONGEST_QUERY_SECONDS:g} s") from error
    return torch.from_numpy(pcm.astype(np.float32) / 32768)


def similar_clips(
    embedder: Embedder, rows: Sequence[SourceRow], query: Path, top: int, progress: OnProgress
) -> list[Hit]:
    """The `top` rows whose embeddings have the largest cosine to the query's, the largest first; ties in order."""
    wanted = unit_rows(embedder.embed(read_query(query), SAMPLE_RATE_HZ).cpu())[0]
    arrays = kept_embeddings(embedder, rows, progress)
    cosines = unit_rows(arrays["embeddings"][:]) @ wanted
    best = torch.argsort(cosines, descending=True, stable=True)[:top].tolist()
    return [Hit(arrays["row"][place], 0.0, float(cosines[place])) for place in best]


def similar_moments(
    embedder: Embedder, rows: Sequence[SourceRow], query: Path, top: int, progress: OnProgress
) -> list[Hit]:
    """The `top` moments of the rows' recordings that are like the query, as long as it is; no two overlap.

    A moment begins at any step of the encoder, and is pooled over its steps as the query is over its own. A recording
    shorter than the query is one moment. Memory does not grow with a recording's length, but for one number a step.
    """
    frames, _ = embedder.embed_frames(read_query(query), SAMPLE_RATE_HZ)
    length, pool = frames.shape[1], embedder.pool
    wanted = unit_rows(windows(frames[0].cpu(), length, pool))[0]
    arrays = kept_embeddings(embedder, rows, progress, frames=True)
    hits = list[Hit]()
    for row, first, steps in zip(arrays["row"], arrays["first_row"][:], arrays["rows"][:], strict=True):
        span, blocks = min(length, int(steps)), list[Tensor]()
        for start in range(0, steps - span + 1, STEPS):
            stop = min(start + STEPS + span - 1, int(steps))
            values = torch.from_numpy(arrays["embeddings"][first + start : first + stop])
            blocks.append(unit_rows(windows(values, span, pool)) @ wanted)
        cosines = torch.cat(blocks).numpy()
        starts = embedder.cutting.stride * embedder.config.frontend.hop_samples / SAMPLE_RATE_HZ
        hits += [Hit(row, place * starts, float(cosines[place])) for place in _apart(cosines, length, top)]
    return sorted(hits, key=lambda hit: -hit.cosine)[:top]


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
