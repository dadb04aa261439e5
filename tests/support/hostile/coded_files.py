"""Hostile FLAC, Ogg and MP3: bombs, lying headers, broken frames and pages."""

from __future__ import annotations

import struct

import numpy as np

from hostile.case import EITHER, PACKED, REJECTED, Case, cases_in
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
    middle = len(plain) // 2

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
        ("block sizes 0", _patched(plain, 8, bytes(4)), EITHER),
        ("block sizes 65535", _patched(plain, 8, b"\xff" * 4), EITHER),
        ("id3 before", b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + plain, PACKED),
        ("id3 of 256 MB before", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(10) + plain, REJECTED),
        ("picture of 16 MB that is not there", plain[:4] + picture + plain[4:], REJECTED),
        ("metadata without end", b"fLaC" + b"\x01\0\0\0" * 50_000, REJECTED),
        ("a frame missing", plain[:frame] + plain[frame + 5000 :], DAMAGED),
        ("zeros in the middle", _patched(plain, middle, bytes(400)), EITHER),
        ("one bit wrong", _patched(plain, middle, bytes((plain[middle] ^ 1,))), EITHER),
        ("rubbish behind", plain + b"\xff" * 5000, PACKED),
    ]
    why = "whether the decoder reports a lost frame or fills it with silence"
    return cases_in("flac/{}.flac", why, kinds)


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
    first, *rest = _pages(vorbis)
    head, *tail = _pages(opus)
    last = rest[-1]
    middle = len(vorbis) // 2
    huge, negative = struct.pack("<q", 2**62), struct.pack("<q", -5)
    kinds: list[tuple[str, bytes, str]] = [
        ("wrong checksum", _patched(vorbis, middle, bytes((vorbis[middle] ^ 1,))), EITHER),
        ("last page missing", b"".join([first, *rest[:-1]]), EITHER),
        ("first page only", first, REJECTED),
        ("rubbish before", b"rubbish!" * 100 + vorbis, REJECTED),
        ("rubbish behind", vorbis + b"rubbish!" * 100, EITHER),
        ("last position 2^62", b"".join([first, *rest[:-1], _sealed(last, 6, huge)]), EITHER),
        ("last position -5", b"".join([first, *rest[:-1], _sealed(last, 6, negative)]), REJECTED),
        ("rate 0", b"".join([_sealed(first, 40, bytes(4)), *rest]), REJECTED),
        ("255 channels", b"".join([_sealed(first, 39, b"\xff"), *rest]), EITHER),
        ("rate 2^31", b"".join([_sealed(first, 40, b"\0\0\0\x80"), *rest]), REJECTED),
        ("theora", _sealed(first, 28, b"\x80theora"), REJECTED),
        ("opus pre-skip 65535", b"".join([_sealed(head, 38, b"\xff\xff"), *tail]), REJECTED),
        ("opus gain -128 dB", b"".join([_sealed(head, 44, b"\0\x80"), *tail]), PACKED),
        ("opus gain 128 dB", b"".join([_sealed(head, 44, b"\xff\x7f"), *tail]), EITHER),
        ("opus 0 channels", b"".join([_sealed(head, 37, b"\0"), *tail]), REJECTED),
        ("opus mapping 255", b"".join([_sealed(head, 46, b"\xff"), *tail]), REJECTED),
    ]
    why = "whether the decoder passes over a broken page or a header that is not that of its stream"
    return cases_in("ogg/{}.ogg", why, kinds)


def _mp3() -> list[Case]:
    plain = encoded(np.tile(NOISE, (2, 1)), "MPEG_LAYER_III", "MP3")
    xing = plain.index(b"Info") if b"Info" in plain[:200] else plain.index(b"Xing")
    frames = plain[plain.index(plain[:2], 100) :]
    single = frames[: frames.index(frames[:2], 10)]
    free = bytearray(frames)
    for place in range(len(free) - 4):
        if free[place : place + 2] == frames[:2]:
            free[place + 2] &= 0x0F
    middle = len(plain) // 2
    kinds: list[tuple[str, bytes, str]] = [
        ("rubbish before", b"rubbish!" * 50 + plain, EITHER),
        ("id3 of 256 MB", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + plain, REJECTED),
        ("ffs in the middle", _patched(plain, middle, b"\xff" * 900), EITHER),
        ("zeros in the middle", _patched(plain, middle, bytes(900)), EITHER),
        ("free format", bytes(free), EITHER),
        ("one frame", single, REJECTED),
        ("4 billion frames promised", _patched(plain, xing + 8, b"\xff" * 4), REJECTED),
        ("only ffs", b"\xff" * 200_000, REJECTED),
        ("only frame headers", b"\xff\xfb\x90\x00" * 50_000, EITHER),
        ("frame header and ffs", frames[:4] + b"\xff" * 300_000, REJECTED),
    ]
    why = "how far mpg123 looks for the next frame, and whether it trusts the count"
    return cases_in("mp3/{}.mp3", why, kinds)


def cases() -> list[Case]:
    """All of this file."""
    return _flac() + _ogg() + _mp3()
