"""MP3 files whose first frame does not count the others, as streams and some encoders leave them.

libsndfile guesses their length by the first frame's bit rate and takes the guess for the end: a variable bit rate then
loses most of the audio without a word. Ours: such a file is read from memory behind a frame that counts.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

_KBITS = {  # by MPEG version, layer III. Source: ISO/IEC 11172-3 and 13818-3, bitrate_index
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_FRAME_START = re.compile(
    b"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]["
    + re.escape(bytes(byte for byte in range(0x10, 0xF0) if byte >> 2 & 3 != 3))
    + b"]"
)
"""First three bytes of what `_frame_bytes` takes for a frame. Ours: found without a step of Python for each byte, which
would take minutes for what is no MP3 but begins as one."""
LARGEST_BYTES = 1 << 29
"""Largest file that is read into memory. Ours: nine hours at 128 kbit/s."""
_ROOM = 64
"""Bytes of a frame up to the end of the count: header, side information of at most 32 bytes, tag, flags, count."""


def has_length(file: BinaryIO) -> bool:
    """Whether the first frame counts all frames (Xing, Info or VBRI)."""
    file.seek(0)
    file.seek(_tag_bytes(file.read(10)))
    start = file.read(512)
    return any(name in start for name in (b"Xing", b"Info", b"VBRI"))


_last: tuple[object, int, tuple[bytes, int] | None] = None, 0, None
"""Name and size of the file counted last, and what was found: a long file is opened for each of its pieces."""


def with_length(file: BinaryIO, name: object) -> io.BytesIO | None:
    """The file behind a Xing frame that counts its frames; None where no layer III frame is found.

    Raises:
        OverflowError: longer than LARGEST_BYTES.
    """
    file.seek(0)
    data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise OverflowError(f"an MP3 that does not count its frames and is larger than {LARGEST_BYTES >> 20} MiB")
    global _last
    if _last[:2] != (name, len(data)):
        _last = name, len(data), _count(data)
    found = _last[2]
    return None if found is None else io.BytesIO(found[0] + data[found[1] :])


def _count(data: bytes) -> tuple[bytes, int] | None:
    """A Xing frame that counts the frames, and where the first of them begins."""
    place = start = _tag_bytes(data[:10])
    first, count = b"", 0
    while 0 <= place <= len(data) - 4:
        size = _frame_bytes(data[place : place + 4])
        if size:
            first = first or data[place : place + 4]
            count += 1
            place += size
        else:
            found = _FRAME_START.search(data, place + 1)
            place = found.start() if found else -1
    if not first:
        return None
    # The same header without protection, at a bit rate that leaves room for the count.
    plain = bytes((first[0], first[1] | 1))
    header, size = next(
        (header, size)
        for index in range(1, 15)
        if (size := _frame_bytes(header := plain + bytes((index << 4 | first[2] & 0x0C, first[3])))) >= _ROOM
    )
    mono, mpeg1 = first[3] >> 6 == 3, first[1] >> 3 & 3 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    frame = header + bytes(side) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return frame.ljust(size, b"\0"), start


def _frame_bytes(header: bytes) -> int:
    """Size of the layer III frame that begins so; 0 where none begins."""
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or header[1] >> 1 & 3 != 1:
        return 0
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    kbits = 0 if version == 1 else _KBITS[3 if version == 3 else 2][header[2] >> 4]
    if not kbits or rate == 3:
        return 0
    return (144 if version == 3 else 72) * kbits * 1000 // _RATES_HZ[version][rate] + (header[2] >> 1 & 1)


def _tag_bytes(head: bytes) -> int:
    """Size of the ID3v2 tag at the start, 0 without one."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
