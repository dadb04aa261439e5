"""Hostile FLAC, Ogg and MP3: bombs, lying headers, broken frames and pages."""

from __future__ import annotations

import struct

import numpy as np

from hostile.case import PACKED, REJECTED, Case, cases_in
from hostile.wav_files import encoded

NOISE = np.random.default_rng(0).standard_normal((16_000, 1)) * 0.1
DAMAGED, JOINED = "truncated or damaged", "several recordings in one file"


def crc(data: bytes, polynomial: int, bits: int) -> int:
    """Cyclic redundancy check, highest bit first, from 0: FLAC's 8 and 16 bits, Ogg's 32."""
    value, top = 0, 1 << (bits - 1)
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value & top else 0)
    return value & ((1 << bits) - 1)


def flac_stream(frames: int, rate: int, promised: int, block: int = 65535) -> bytes:
    """FLAC of constant subframes, 65535 samples in some 16 bytes each; its header promises `promised` samples."""
    packed = rate << 44 | 0 << 41 | 15 << 36 | promised
    header = struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    stream = b"fLaC" + b"\x80\0\0\x22" + header
    made: list[bytes] = []
    for number in range(frames):
        coded = chr(number).encode("utf-8", "surrogatepass")
        start = b"\xff\xf8\x70\x08" + coded + struct.pack(">H", 65534)
        start += bytes((crc(start, 0x07, 8),))
        body = start + b"\0" + struct.pack(">h", number % 1000)
        made.append(body + struct.pack(">H", crc(body, 0x8005, 16)))
    return stream + b"".join(made)


def _patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _flac() -> list[Case]:
    plain = encoded(NOISE, "PCM_16", "FLAC")
    packed = int.from_bytes(plain[18:26], "big")

    def stream_info(**fields: int) -> bytes:
        rate, samples = fields.get("rate", 16_000), fields.get("samples", 16_000)
        return (rate << 44 | packed & (0xFF << 36) | samples).to_bytes(8, "big")

    frame = plain.index(b"\xff\xf8", 42)
    picture = b"\x06" + (0xFFFFFF).to_bytes(3, "big")
    kinds: list[tuple[str, bytes, str]] = [
        ("bomb of 131 h without length", flac_stream(720, 100, 0), "too long"),
        ("bomb of 25 h with length", flac_stream(140, 100, 140 * 65535), "too long"),
        ("small bomb of 40 s", flac_stream(10, 16_000, 0), PACKED),
        ("2^36-1 samples promised", _patched(plain, 18, stream_info(samples=2**36 - 1)), "too long"),
        ("twice the samples promised", _patched(plain, 18, stream_info(samples=32_000)), DAMAGED),
        ("half the samples promised", _patched(plain, 18, stream_info(samples=8000)), PACKED),
        ("rate 0 in the header", _patched(plain, 18, stream_info(rate=0)), REJECTED),
        ("id3 before", b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + plain, PACKED),
        ("id3 of 256 MB before", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(10) + plain, REJECTED),
        ("picture of 16 MB that is not there", plain[:4] + picture + plain[4:], REJECTED),
        ("metadata without end", b"fLaC" + b"\x01\0\0\0" * 50_000, REJECTED),
        ("a frame missing", plain[:frame] + plain[frame + 5000 :], DAMAGED),
        ("rubbish behind", plain + b"\xff" * 5000, PACKED),
    ]
    return cases_in("flac/{}.flac", kinds)


def _pages(stream: bytes) -> list[bytes]:
    pages = []
    while stream:
        count = stream[26]
        size = 27 + count + sum(stream[27 : 27 + count])
        pages.append(stream[:size])
        stream = stream[size:]
    return pages


def _sealed(page: bytes, place: int, new: bytes) -> bytes:
    """A page with other bytes and the checksum that belongs to them."""
    bare = _patched(_patched(page, place, new), 22, bytes(4))
    return _patched(bare, 22, struct.pack("<I", crc(bare, 0x04C11DB7, 32)))


def _ogg() -> list[Case]:
    vorbis, opus = encoded(NOISE, "VORBIS", "OGG"), encoded(NOISE, "OPUS", "OGG")
    (first, *rest), (head, *tail) = _pages(vorbis), _pages(opus)
    negative = _sealed(rest[-1], 6, struct.pack("<q", -5))
    kinds: list[tuple[str, bytes, str]] = [
        ("cut in a page", vorbis[:-500], DAMAGED),
        ("headers only", first + rest[0], REJECTED),
        ("first page only", first, REJECTED),
        ("chained at another rate", vorbis + encoded(NOISE, "VORBIS", "OGG", rate=44_100), JOINED),
        ("rubbish before", b"rubbish!" * 100 + vorbis, REJECTED),
        ("last position -5", b"".join([first, *rest[:-1], negative]), REJECTED),
        ("rate 0", b"".join([_sealed(first, 40, bytes(4)), *rest]), REJECTED),
        ("rate 2^31", b"".join([_sealed(first, 40, b"\0\0\0\x80"), *rest]), REJECTED),
        ("theora", _sealed(first, 28, b"\x80theora"), REJECTED),
        ("opus", opus, PACKED),
        ("opus cut", opus[:3000], REJECTED),
        ("opus pre-skip 65535", b"".join([_sealed(head, 38, b"\xff\xff"), *tail]), REJECTED),
        ("opus gain -128 dB", b"".join([_sealed(head, 44, b"\0\x80"), *tail]), PACKED),
        ("opus 0 channels", b"".join([_sealed(head, 37, b"\0"), *tail]), REJECTED),
        ("opus mapping 255", b"".join([_sealed(head, 46, b"\xff"), *tail]), REJECTED),
    ]
    return cases_in("ogg/{}.ogg", kinds)


def _mp3() -> list[Case]:
    plain = encoded(np.tile(NOISE, (2, 1)), "MPEG_LAYER_III", "MP3")
    xing = plain.index(b"Info") if b"Info" in plain[:200] else plain.index(b"Xing")
    frames = plain[plain.index(plain[:2], 100) :]
    single = frames[: frames.index(frames[:2], 10)]
    kinds: list[tuple[str, bytes, str]] = [
        ("id3 of 256 MB", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + plain, REJECTED),
        ("one frame", single, REJECTED),
        ("4 billion frames promised", _patched(plain, xing + 8, b"\xff" * 4), REJECTED),
        ("only ffs", b"\xff" * 200_000, REJECTED),
        ("frame header and ffs", frames[:4] + b"\xff" * 300_000, REJECTED),
    ]
    return cases_in("mp3/{}.mp3", kinds)


def cases() -> list[Case]:
    """All of this file."""
    return _flac() + _ogg() + _mp3()
