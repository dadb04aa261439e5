"""A file decoded in a worker process, where a native crash or a hang is an answer like any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfused_fast.shards.audio.decode import decode_samples, probe
from unfused_fast.shards.audio.mp3 import slack_samples
from unfused_fast.shards.packing.workers import At, Bad
from unfused_fast.shards.sources.reasons import Rejected

PIECE_SAMPLES = 16_000


@dataclass(frozen=True)
class DecodeJob:
    """First and last second of a file."""

    path: Path

    def answer(self, bad: Bad, at: At) -> str:
        """ "packed", "rejected", or what was wrong."""
        at(0)
        if bad:
            return str(bad[0])
        try:
            found = probe(self.path)
            for start in {0, max(0, found.samples - PIECE_SAMPLES)}:
                stop = min(found.samples, start + PIECE_SAMPLES)
                pcm = decode_samples(self.path, found.frames, start, stop)
                padding = slack_samples("MPEG_LAYER_III", found.rate_hz) * 16_000 // found.rate_hz
                slack = 1 + padding if self.path.suffix == ".mp3" else 0
                if pcm.dtype != np.int16 or pcm.ndim != 1 or not stop - start - slack <= len(pcm) <= stop - start:
                    return f"{pcm.dtype} of {pcm.shape}, but {stop - start} samples were declared"
        except Rejected as rejected:
            said = str(rejected)
            return "rejected" if str(self.path) not in said and said.isprintable() else repr(said)
        return "packed"
