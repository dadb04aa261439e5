"""Finds files that end before or after the point that their header declares: libsndfile reports no error."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal

from unfused_fast.shards.sources.reader import ByteReader
from unfused_fast.shards.sources.reasons import Reason, Rejected

STREAMED_BYTES = range(0x7F000000, 1 << 32)
"""Declared sizes that are ignored. Ours: a streaming writer cannot know the size and leaves the largest number instead.
"""
SLACK_BYTES = 128
"""A header may declare this much more than the file holds: some writers count the header's bytes as audio."""
REST_BYTES = 1024
"""Most bytes after the samples, neither chunks nor zeros, that are left out. Ours: tags and what a transfer adds,
at most 30 ms of sound."""
MOST_PADDING_BYTES = 1 << 24
"""Most zeros after the samples that are taken for padding."""
MOST_GAP_BYTES = 1 << 20
"""How far past other data the next Ogg page is searched. Ours: tags with a picture are smaller."""
AS_FILES = "save each recording in a separate file"
_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"caff", b"riff", b"NIST")
_READ_ON = (b"riff", b"NIST")
"""W64 and NIST, of which libsndfile reads up to the end of the file, whatever their headers declare."""
_W64_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""What follows the four letters of a W64 chunk's name, but for the first, `riff`."""
_FLAC = re.compile(rb"fLaC\0\0\0\x22")
"""How a FLAC begins: its mark, and the header of STREAMINFO. Source: RFC 9639."""
SCANNED_BYTES = 1 << 20
_PAGE_HEADER_BYTES = 27
_LAST_PAGE = 4
_WITHIN_PAGE = "ends within a page"
_MARKING = "if it is whole, mark its end with: ffmpeg -i IN -c copy OUT.ogg"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_HEAD_BYTES = 1024
"""The header of a NIST, and more than that of AU."""


def ogg_streams(file: BinaryIO) -> tuple[int, str]:
    """(Ogg streams that follow the first one and what is multiplexed with it, each with headers of its own; what shows
    that the file is not whole, as after an interrupted download, or nothing).
    """
    end, place, later, within = file.seek(0, io.SEEK_END), 0, 0, False
    damaged, flags = False, _LAST_PAGE
    while place < end:
        file.seek(place)
        page = file.read(_PAGE_HEADER_BYTES + 255)
        if page[:4] != b"OggS":  # a tag, padding or damage between pages
            file.seek(place)
            gap = file.read(MOST_GAP_BYTES).find(b"OggS\0")
            if gap < 0:
                break
            place += gap
            continue
        if len(page) < _PAGE_HEADER_BYTES:
            return later, _WITHIN_PAGE
        begins = bool(page[5] & 2)
        later += begins and within
        within = not begins  # the first pages of multiplexed streams follow each other
        segments = page[_PAGE_HEADER_BYTES - 1]
        size = _PAGE_HEADER_BYTES + segments + sum(page[_PAGE_HEADER_BYTES : _PAGE_HEADER_BYTES + segments])
        page = (page + file.read(max(0, size - len(page))))[:size]
        damaged |= int.from_bytes(page[22:26], "little") != _ogg_crc(page[:22] + bytes(4) + page[26:])
        place, flags = place + size, page[5]
    if place > end:
        return later, _WITHIN_PAGE
    if damaged:
        return later, "a page differs from its checksum"
    return later, "" if flags & _LAST_PAGE else f"its last page is not marked as the end; {_MARKING}"


def _ogg_crc(page: bytes) -> int:
    """CRC-32 from the highest bit on, without inversion: zlib's, which takes the lowest first, with all bits reversed.

    Source: RFC 3533, section 6.
    """
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def second_flac(file: BinaryIO) -> int | None:
    """Where another FLAC begins after the first, in bytes; None: nowhere."""
    file.seek(0)
    place, starts, kept = 0, list[int](), b""
    while len(starts) < 2 and (block := file.read(SCANNED_BYTES)):
        block = kept + block
        starts += [place + match.start() for match in _FLAC.finditer(block)]
        kept = block[-7:]  # a byte less than is searched for
        place += len(block) - len(kept)
    return starts[1] if len(starts) > 1 else None


@dataclass(frozen=True)
class _SoundChunk:
    """Where the samples of a WAV, RF64, AIFF, AU, CAF, W64 or NIST file are."""

    format: bytes
    """Of RIFF and RF64, the chunk that describes the encoding of the samples, header included."""
    start: int
    declared: int
    """Bytes, by the chunk's header."""
    there: int
    """Bytes up to the end of the file."""
    rest: int
    """Bytes at the end of the file that are in no chunk, zeros apart."""
    rest_begins: bytes
    """The first of these."""


def with_its_end(file: io.BufferedReader) -> io.BufferedReader | None:
    """The same file as libsndfile has to see it; None: as it is. Closing the result closes the file.

    A WAV or RF64 gets a header that declares all its samples, where its own certainly declares fewer: none, because the
    recorder died, or too few because the file has more than 4 GB, which its 32 bits cannot hold. A file of `_READ_ON`
    ends after the declared samples.

    Raises:
        Rejected: the file ends before the declared samples do, or something else follows them.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    sound = _sound_chunk(file, head)
    if sound is None:
        return None
    if 0 < sound.there < sound.declared - SLACK_BYTES and sound.declared not in STREAMED_BYTES:
        raise Rejected(Reason.DAMAGED, f"ends after {sound.there} of {sound.declared} bytes of samples")
    if sound.rest <= REST_BYTES:
        if sound.declared >= sound.there or not head.startswith(_READ_ON):
            return None
        return io.BufferedReader(_Spliced(b"", file, 0, sound.start + sound.declared))
    if sound.rest_begins in _MAGICS:
        raise Rejected(Reason.JOINED, f"{sound.rest} bytes of another file follow the first; {AS_FILES}")
    wraps = (sound.there - sound.declared) >> 32
    if sound.format and (wraps or not sound.declared):
        size = sound.declared + (wraps << 32) if sound.declared else sound.there
        return io.BufferedReader(_Spliced(_header(sound, size), file, sound.start, size))
    if not sound.declared:
        raise Rejected(Reason.NO_SAMPLES, f"its header declares none, but {sound.rest} bytes follow")
    raise Rejected(
        Reason.DAMAGED,
        f"its header declares {sound.declared} bytes of samples, but {sound.rest} more bytes follow"
        + ("; if they are audio, rewrite the file with: ffmpeg -ignore_length 1 -i IN OUT.wav" if sound.format else ""),
    )


def _header(sound: _SoundChunk, size: int) -> bytes:
    """The start of a WAV that ends after `size` bytes of samples; of an RF64 where 32 bits do not hold the size."""
    behind, most = len(sound.format) + 12 + size, b"\xff" * 4
    if behind < 1 << 32:
        return struct.pack("<4sI4s", b"RIFF", behind, b"WAVE") + sound.format + struct.pack("<4sI", b"data", size)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, behind + 36, size, 0, 0)
    return b"RF64" + most + b"WAVE" + ds64 + sound.format + b"data" + most


def _sound_chunk(file: BinaryIO, head: bytes) -> _SoundChunk | None:
    """None where there is no such chunk, or where it extends to the end of the file, whatever its size.

    Source of the sizes of 64 bits: Apple's Core Audio Format specification; Sony's of W64, whose sizes count their
    headers.
    """
    magic, kind, end = head[:4], head[8:12], file.seek(0, io.SEEK_END)
    if (found := _without_chunks(head)) is not None:
        return _with_rest(file, end, b"", *found, sum(found))
    name = {b"WAVE": b"data", b"AIFF": b"SSND", b"AIFC": b"SSND"}.get(kind, b"")
    order: Literal["big", "little"] = "big" if magic in (b"RIFX", b"FORM", b"caff") else "little"
    place, wide, even = 12, 8, 2
    if magic in (b"caff", b"riff"):
        name, (place, wide, even) = b"data", (8, 12, 1) if magic == b"caff" else (40, 24, 8)
    if magic not in _MAGICS or not name:
        return None
    long_size, padding, coded = 0, 0, b""
    while place + wide <= end:
        file.seek(place)
        header = file.read(24)
        if len(header) < wide:  # a server did not answer; opening the file reports that
            return None
        size = int.from_bytes(header[max(4, wide - 8) : wide], order)
        named = _names_chunk(header[:4]) and (magic != b"riff" or header[4:16] == _W64_GUID)
        if magic == b"riff":
            size = max(0, size - wide)
        if header[:4] == b"ds64":
            long_size = int.from_bytes(header[16:24], "little")
        if header[:4] == b"fmt " and wide == 8 and size <= REST_BYTES and found is None and order == "little":
            coded = (header + file.read(size))[: 8 + size + (size & 1)]
        if found is None and header[:4] == name:
            if magic == b"caff" and size == (1 << 64) - 1:
                return None
            found = place + wide, long_size if size == 0xFFFFFFFF and magic == b"RF64" else size
            size = found[1]
        elif place + wide + size > end or (not named and (found is not None or wide > 8)):
            if not padding or wide > 8:
                break
            place, padding = place - 1, 0  # a writer left out the byte that makes a size even
            continue
        padding = -size % even
        place += wide + size + padding
    return None if found is None else _with_rest(file, end, coded, *found, place)


def _without_chunks(head: bytes) -> tuple[int, int] | None:
    """(Where the samples of an AU or NIST begin, their bytes by its header); None: it does not say."""
    if head[:4] == b".snd":
        start, size = (int.from_bytes(head[place : place + 4], "big") for place in (4, 8))
        return None if size == 0xFFFFFFFF else (start, size)
    if (sphere := re.match(rb"NIST_1A\n *(\d+)\n", head)) is not None and b",embedded" not in head:
        fields = dict(re.findall(rb"^(\w+) -(?:i|s\d+) (\d+)", head, re.MULTILINE))
        counts = [int(fields.get(name, 0)) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
        return (int(sphere[1]), math.prod(counts)) if all(counts) else None
    return None


def _with_rest(file: BinaryIO, end: int, coded: bytes, start: int, declared: int, behind: int) -> _SoundChunk:
    """Args: behind: where the bytes in no chunk begin; a declared size may exceed any file."""
    file.seek(min(behind, end))
    begins, rest = file.read(4), max(0, end - behind)
    if declared and not any(begins) and rest <= MOST_PADDING_BYTES and not any(file.read(rest)):
        rest = 0
    return _SoundChunk(coded, start, declared, max(0, end - start), rest, begins)


def _names_chunk(name: bytes) -> bool:
    return name not in _MAGICS and all(0x20 <= byte < 0x7F for byte in name)


class _Spliced(ByteReader):
    """A new header before a part of a file, which is closed with it."""

    def __init__(self, header: bytes, file: io.BufferedReader, start: int, size: int) -> None:
        super().__init__(self._read_part, 0, len(header) + size)
        self._header, self._file, self._offset = header, file, start - len(header)
        self.raises = False

    def _read_part(self, position: int, count: int) -> bytes:
        data = self._header[position : position + count]
        self._file.seek(position + len(data) + self._offset)
        return data + self._file.read(count - len(data))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
