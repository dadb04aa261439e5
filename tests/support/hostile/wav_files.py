"""Hostile headers: RIFF, its relatives, and every sample format, with contents that arithmetic trips over."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
from numpy.typing import NDArray
from whole_files import chunk, riff

from hostile.case import PACKED, REJECTED, Case, cases_in

RATE = 16000


def tone(frames: int = 4000, channels: int = 1) -> NDArray[np.float64]:
    """(frames, channels): sines, a little apart."""
    return 0.4 * np.sin(np.arange(frames)[:, None] * (0.11 + 0.001 * np.arange(channels)[None, :]))


def encoded(signal: NDArray[np.float64], subtype: str | None = None, form: str = "WAV", rate: int = RATE) -> bytes:
    """A regular file, as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, signal, rate, subtype, format=form)
    return file.getvalue()


def pcm16(signal: NDArray[np.float64]) -> bytes:
    return (signal * 32767).astype("<i2").tobytes()


def fmt(tag: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, align: int | None = None) -> bytes:
    """Content of a fmt chunk."""
    size = channels * bits // 8 if align is None else align
    return struct.pack("<HHIIHH", tag, channels & 0xFFFF, rate, rate * size & 0xFFFFFFFF, size & 0xFFFF, bits)


DATA = pcm16(tone())
FMT = chunk(b"fmt ", fmt())
PLAIN = riff(FMT, chunk(b"data", DATA))


def _rates() -> list[Case]:
    def at(rate: int, frames: int) -> bytes:
        return riff(chunk(b"fmt ", fmt(rate=rate)), chunk(b"data", pcm16(tone(frames))))

    unusable = "unusable sample rate"
    kinds = {0: REJECTED, 1: unusable, 99: unusable, 100: PACKED, 7919: PACKED, 767_999: PACKED, 1_536_000: PACKED}
    kinds |= {1_536_001: unusable, 2**31 - 1: unusable, 2**32 - 1: REJECTED}
    frames = {100: 400, 767_999: 200_000, 1_536_000: 200_000}
    return [Case(f"rates/{rate} Hz.wav", at(rate, frames.get(rate, 4000)), what) for rate, what in kinds.items()]


def _channels() -> list[Case]:
    def of(channels: int) -> bytes:
        return riff(chunk(b"fmt ", fmt(channels=channels)), chunk(b"data", pcm16(tone(2000, channels))))

    cases = [Case(f"channels/{count}.wav", of(count), PACKED) for count in (2, 6, 64, 255, 1024)]
    for count in (0, 1025, 65535):  # libsndfile takes 1 to 1024
        data = riff(chunk(b"fmt ", fmt(channels=count, align=2)), chunk(b"data", DATA))
        cases.append(Case(f"channels/{count}.wav", data, "not audio"))
    return [*cases, Case("channels/64 at 768 kHz.wav", encoded(tone(90_000, 64), "FLOAT", rate=768_000), PACKED)]


def _contents() -> list[Case]:
    def with_value(value: float, place: int = 2000, rate: int = RATE, subtype: str = "FLOAT") -> bytes:
        signal = tone(9000)
        signal[place] = value
        return encoded(signal, subtype, rate=rate)

    opposed = tone(4000, 2)
    opposed[100] = np.inf, -np.inf
    wide = tone(4000, 2)
    wide[100] = 3e38
    bad, large = "non-finite", "samples out of range"
    kinds: list[tuple[str, bytes, str]] = [
        ("nan", with_value(np.nan), bad),
        ("nan only", encoded(np.full(4000, np.nan), "FLOAT"), bad),
        ("nan double at 44 kHz", with_value(np.nan, 0, 44100, "DOUBLE"), bad),
        ("infinite", with_value(np.inf), bad),
        ("infinities that cancel", encoded(opposed, "FLOAT"), bad),
        ("sum too large", encoded(wide, "FLOAT"), bad),
        ("1e300", with_value(1e300, subtype="DOUBLE"), bad),
        ("3e38 at 44 kHz", encoded(tone(9000) * 8e38, "FLOAT", rate=44100), large),
        ("1e30", with_value(1e30), large),
        ("63", with_value(63.0), PACKED),
        ("1e30 at 44 kHz", encoded(tone(9000) * 1e30, "FLOAT", rate=44100), large),
        ("denormals at 44 kHz", encoded(tone(80_000) * 1e-39, "FLOAT", rate=44100), PACKED),
        ("full scale square", encoded(np.sign(tone()), "PCM_16", rate=22050), PACKED),
        ("one sample", encoded(tone(1)), REJECTED),
        ("one sample at 1.5 MHz", encoded(tone(1), rate=1_500_000), "too short"),
    ]
    return cases_in("contents/{}.wav", kinds)


def _structure() -> list[Case]:
    truncated, data = "truncated or damaged", chunk(b"data", DATA)
    extensible = fmt(0xFFFE) + struct.pack("<HHI", 22, 16, 4)
    kinds: list[tuple[str, bytes, str]] = [
        ("riff size too small", riff(FMT, data, size=100), PACKED),
        ("riff size too large", riff(FMT, data, size=100_000), PACKED),
        ("data size too large", riff(FMT, chunk(b"data", DATA, 100_000)), truncated),
        ("data size 2 GB", riff(FMT, chunk(b"data", DATA, 0x7EFFFFFF)), truncated),
        ("both sizes 4 GB in 1 KB", riff(FMT, chunk(b"data", DATA[:980], 0xFFFFFFF0), size=0xFFFFFFF0), "too short"),
        ("data before fmt", riff(data, FMT), REJECTED),
        ("two data chunks", riff(FMT, data, data), "not audio"),
        ("no fmt", riff(data), REJECTED),
        ("no data", riff(FMT), REJECTED),
        ("fmt of 15 bytes", riff(chunk(b"fmt ", fmt()[:15]), data), REJECTED),
        ("fmt of 1000 bytes", riff(chunk(b"fmt ", fmt().ljust(1000, b"\0")), data), PACKED),
        ("fmt of 4 GB", riff(chunk(b"fmt ", fmt(), 0xFFFFFFF0), data), REJECTED),
        ("list of 4 GB before data", riff(FMT, chunk(b"LIST", b"INFO", 0xFFFFFFF0), data), REJECTED),
        ("list of 4 GB after data", riff(FMT, data, chunk(b"LIST", b"INFO", 0xFFFFFFF0)), PACKED),
        ("rifx", riff(FMT, data, magic=b"RIFX"), REJECTED),
        ("20000 chunks", riff(FMT, chunk(b"note", b"ab") * 20_000, data), "not audio"),
        ("255 bits", riff(chunk(b"fmt ", fmt(bits=255)), data), REJECTED),
        ("extensible of another kind", riff(chunk(b"fmt ", extensible + bytes(range(16))), data), "not audio"),
        ("adpcm block 0", riff(chunk(b"fmt ", fmt(17, bits=4, align=0) + b"\2\0\0\0"), data), REJECTED),
        ("ms adpcm without coefficients", riff(chunk(b"fmt ", fmt(2, bits=4, align=256) + bytes(4)), data), REJECTED),
        ("mp3 inside that is none", riff(chunk(b"fmt ", fmt(0x55) + bytes(14)), data), REJECTED),
        ("fact of 4 billion", riff(FMT, chunk(b"fact", b"\xff" * 4), data), PACKED),
    ]
    return cases_in("structure/{}.wav", kinds)


def _truncated() -> list[Case]:
    """Cut within the magic, at the end of the header, and within the samples."""
    kinds: list[tuple[str, bytes, str]] = []
    forms = dict.fromkeys(("wav", "rf64", "w64", "aiff", "au", "flac", "nist"), "truncated or damaged")
    for form, where in {**forms, "caf": REJECTED, "svx": "unsupported format"}.items():
        whole = encoded(np.random.default_rng(0).standard_normal((8000, 1)) * 0.1, "PCM_16", form.upper())
        kinds += [(f"{size} bytes.{form}", whole[:size], REJECTED) for size in (1, 4, 11, 23)]
        kinds.append((f"half.{form}", whole[: len(whole) // 2], where))
    return cases_in("truncated/{}", kinds)


def cases() -> list[Case]:
    """All of this file."""
    return _rates() + _channels() + _contents() + _structure() + _truncated()
