"""What tells that a file is truncated: libsndfile reads what there is and reports no error."""

from __future__ import annotations

import io
import re
from typing import BinaryIO

STREAMED_BYTES = 0x7F000000
"""A larger promise is none. Ours: a streaming writer cannot know the size and leaves the largest number instead."""
LAST_BYTES = 1 << 17
"""Where the last Ogg page is looked for: a page has 65307 bytes at most, and a tag may follow it. Source: RFC 3533."""
_PAGE_HEADER_BYTES = 27
_NIST_HEADER_BYTES = 1024
_LOGGED_BYTES = re.compile(
    r"^ *(?:data|SSND|BODY|riff|Data Size|Data length) *:? (\d+) \(?should be (\d+)", re.MULTILINE
)
"""Promised and there, in WAV, AIFF, SVX, W64, AU, WVE."""
_LOGGED_FRAMES = re.compile(r"from 'ds64' chunk of (\d+)")
"""Promised, in RF64."""
_SAMPLE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


def logged_frames(log: str, frames: int) -> int:
    """Samples per channel that the header promised, by libsndfile's log of opening a file with `frames`; 0: as many."""
    promised = [int(count) for count in _LOGGED_FRAMES.findall(log)]
    promised += [
        frames * int(size) // int(there)
        for size, there in _LOGGED_BYTES.findall(log)
        if int(size) < STREAMED_BYTES and int(there)
    ]
    return max(promised, default=0)


def ogg_ends_within_a_page(file: BinaryIO) -> bool:
    """Whether the last page is cut, as an interrupted download leaves it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - LAST_BYTES))
    tail = file.read()
    page = tail[place:] if (place := tail.rfind(b"OggS")) >= 0 else b""
    if len(page) < _PAGE_HEADER_BYTES:
        return bool(page)
    segments = page[_PAGE_HEADER_BYTES - 1]
    lengths = page[_PAGE_HEADER_BYTES : _PAGE_HEADER_BYTES + segments]
    return len(lengths) < segments or len(page) < _PAGE_HEADER_BYTES + segments + sum(lengths)


def nist_frames(file: BinaryIO) -> int:
    """Samples per channel that a SPHERE header promises; 0 where it does not say."""
    file.seek(0)
    found = _SAMPLE_COUNT.search(file.read(_NIST_HEADER_BYTES))
    return int(found[1]) if found else 0
