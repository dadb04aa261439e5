"""One file at a time decoded in a process of its own, so that a native crash or a hang is an answer like any other."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from unfused_fast.shards.audio.decode import decode_samples, probe
from unfused_fast.shards.audio.open_audio import MP3_SLACK_FRAMES
from unfused_fast.shards.sources.reasons import Rejected

PIECE_SAMPLES = 16_000
SECONDS = 30.0
"""What one small file may take before it counts as a hang."""


def decode(path: Path) -> str:
    """First and last second of a file: "packed", "rejected", or what was wrong with the answer."""
    try:
        found = probe(path)
        for start in {0, max(0, found.samples - PIECE_SAMPLES)}:
            stop = min(found.samples, start + PIECE_SAMPLES)
            pcm = decode_samples(path, found.frames, start, stop)
            slack = 1 + MP3_SLACK_FRAMES * 16_000 // found.rate_hz if _is_mp3(path) else 0
            if pcm.dtype != np.int16 or pcm.ndim != 1 or not stop - start - slack <= len(pcm) <= stop - start:
                return f"{pcm.dtype} of {pcm.shape}, but {stop - start} samples were declared"
    except Rejected as rejected:
        return "rejected" if str(path) not in str(rejected) and str(rejected).isprintable() else repr(str(rejected))
    return "packed"


def _is_mp3(path: Path) -> bool:
    return path.suffix == ".mp3"


def _serve(connection: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders talk
    while True:
        connection.send(decode(connection.recv()))


class DecoderProcess:
    """A process that answers `decode`, started again when it has died."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def decode(self, path: Path) -> str:
        """As the function; "crashed" with the exit code, or "hung"."""
        if self._process is None:
            self._connection, other = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        assert self._connection is not None
        try:
            self._connection.send(path)
            if self._connection.poll(SECONDS):
                return str(self._connection.recv())
            answer = "hung"
        except (EOFError, ConnectionError):
            self._process.join()
            answer = f"crashed: exit code {self._process.exitcode}"
        self.close()
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
