"""What tests of whole recordings share: a file as packing decodes it, and parts of files in bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfused_fast.shards.audio.decode import decode_samples, probe


def decoded(path: Path) -> NDArray[np.int16]:
    found = probe(path)
    pcm = decode_samples(path, found.frames, 0, found.samples)
    assert len(pcm) == found.samples
    return pcm


def id3(size: int, content: bytes = b"\0") -> bytes:
    sizes = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + sizes + (content * size)[:size]


def chunk(name: bytes, data: bytes = b"", size: int | None = None, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes, magic: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body
