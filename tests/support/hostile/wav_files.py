"""Hostile headers: RIFF, its relatives, and every sample format, with contents that arithmetic trips over."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
from numpy.typing import NDArray

from hostile.case import EITHER, PACKED, REJECTED, Case, holding

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


def chunk(name: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    """Name, size (true, unless given), data, padding."""
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes, size: int | None = None, magic: bytes = b"RIFF", form: bytes = b"WAVE") -> bytes:
    """A whole file of these chunks."""
    body = form + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


DATA = pcm16(tone())
FMT = chunk(b"fmt ", fmt())
PLAIN = riff(FMT, chunk(b"data", DATA))


def _rates() -> list[Case]:
    def at(rate: int, frames: int) -> bytes:
        return riff(chunk(b"fmt ", fmt(rate=rate)), chunk(b"data", pcm16(tone(frames))))

    unusable = "unusable sample rate"
    kinds: list[tuple[int, int, str]] = [
        (0, 4000, REJECTED),
        (1, 4000, unusable),
        (99, 4000, unusable),
        (100, 400, PACKED),
        (7919, 4000, PACKED),
        (768_000, 200_000, PACKED),
        (767_999, 200_000, PACKED),
        (1_536_000, 200_000, PACKED),
        (1_536_001, 4000, unusable),
        (2**31 - 1, 4000, unusable),
        (2**32 - 1, 4000, REJECTED),
    ]
    return [Case(f"rates/{rate} Hz.wav", holding(at(rate, frames)), what) for rate, frames, what in kinds]


def _channels() -> list[Case]:
    def of(channels: int) -> bytes:
        return riff(chunk(b"fmt ", fmt(channels=channels)), chunk(b"data", pcm16(tone(2000, channels))))

    cases = [Case(f"channels/{count}.wav", holding(of(count)), PACKED) for count in (2, 6, 64, 255, 1024)]
    for count in (0, 1025, 65535):  # libsndfile takes 1 to 1024
        data = riff(chunk(b"fmt ", fmt(channels=count, align=2)), chunk(b"data", DATA))
        cases.append(Case(f"channels/{count}.wav", holding(data), "not audio"))
    cases.append(Case("channels/64 at 768 kHz.wav", holding(encoded(tone(90_000, 64), "FLOAT", rate=768_000)), PACKED))
    return cases


def _sample_formats() -> list[Case]:
    kinds = {
        "WAV": "PCM_U8 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610 G721_32 NMS_ADPCM_32",
        "WAVEX": "PCM_24 DOUBLE",
        "AIFF": "PCM_S8 PCM_U8 PCM_24 FLOAT DOUBLE ULAW ALAW IMA_ADPCM DWVW_24 GSM610",
        "CAF": "PCM_24 DOUBLE ULAW ALAC_16 ALAC_32",
        "AU": "PCM_16 G723_24 G723_40 DOUBLE",
        "RF64": "PCM_24",
        "W64": "MS_ADPCM GSM610",
        "VOC": "PCM_U8 ALAW",
        "NIST": "PCM_32 ULAW",
        "MAT4": "DOUBLE",
        "MAT5": "FLOAT",
        "SVX": "PCM_16",
        "PAF": "PCM_24",
        "SDS": "PCM_16",
        "IRCAM": "FLOAT",
        "AVR": "PCM_S8",
        "PVF": "PCM_32",
        "HTK": "PCM_16",
        "FLAC": "PCM_S8 PCM_24",
    }
    return [
        Case(f"formats/{form} {subtype}.audio", holding(encoded(tone(8000), subtype, form)), PACKED)
        for form, subtypes in kinds.items()
        for subtype in subtypes.split()
    ]


def _contents() -> list[Case]:
    def with_value(value: float, place: int = 2000, rate: int = RATE, subtype: str = "FLOAT") -> bytes:
        signal = tone(9000)
        signal[place] = value
        return encoded(signal, subtype, rate=rate)

    opposed = tone(4000, 2)
    opposed[100] = np.inf, -np.inf
    wide = tone(4000, 2)
    wide[100] = 3e38
    return [
        Case("contents/nan.wav", holding(with_value(np.nan)), "non-finite"),
        Case("contents/nan at the end.wav", holding(with_value(np.nan, -1)), "non-finite"),
        Case("contents/nan only.wav", holding(encoded(np.full(4000, np.nan), "FLOAT")), "non-finite"),
        Case("contents/nan double at 44 kHz.wav", holding(with_value(np.nan, 0, 44100, "DOUBLE")), "non-finite"),
        Case("contents/infinite.wav", holding(with_value(np.inf)), "non-finite"),
        Case("contents/minus infinite.aiff", holding(with_value(-np.inf)), "non-finite"),
        Case("contents/infinities that cancel.wav", holding(encoded(opposed, "FLOAT")), "non-finite"),
        Case("contents/sum too large.wav", holding(encoded(wide, "FLOAT")), "non-finite"),
        Case("contents/1e300.wav", holding(with_value(1e300, subtype="DOUBLE")), "non-finite"),
        Case("contents/3e38 at 44 kHz.wav", holding(encoded(tone(9000) * 8e38, "FLOAT", rate=44100)), "non-finite"),
        Case("contents/1e30.wav", holding(with_value(1e30)), PACKED),
        Case("contents/1e30 at 44 kHz.wav", holding(encoded(tone(9000) * 1e30, "FLOAT", rate=44100)), PACKED),
        Case("contents/denormals.wav", holding(encoded(tone() * 1e-39, "FLOAT")), PACKED),
        Case("contents/denormals at 44 kHz.wav", holding(encoded(tone(80_000) * 1e-39, "FLOAT", rate=44100)), PACKED),
        Case("contents/double denormals.wav", holding(encoded(tone() * 1e-310, "DOUBLE")), PACKED),
        Case("contents/full scale square.wav", holding(encoded(np.sign(tone()), "PCM_16", rate=22050)), PACKED),
        Case("contents/one sample.wav", holding(encoded(tone(1))), REJECTED),
        Case("contents/one sample at 1.5 MHz.wav", holding(encoded(tone(1), rate=1_500_000)), "too short"),
    ]


def _structure() -> list[Case]:
    truncated, data = "truncated or damaged", chunk(b"data", DATA)
    extensible = fmt(0xFFFE) + struct.pack("<HHI", 22, 16, 4)
    guess = "whether libsndfile takes this chunk for broken or passes over it"
    kinds: list[tuple[str, bytes, str]] = [
        ("riff size 0", riff(FMT, data, size=0), PACKED),
        ("riff size ffffffff", riff(FMT, data, size=0xFFFFFFFF), PACKED),
        ("riff size too small", riff(FMT, data, size=100), PACKED),
        ("riff size too large", riff(FMT, data, size=100_000), PACKED),
        ("data size 0", riff(FMT, chunk(b"data", DATA, 0)), PACKED),
        ("data size ffffffff", riff(FMT, chunk(b"data", DATA, 0xFFFFFFFF)), PACKED),
        ("data size too small", riff(FMT, chunk(b"data", DATA, 4000)), truncated),
        ("data size too large", riff(FMT, chunk(b"data", DATA, 100_000)), truncated),
        ("data size 2 GB", riff(FMT, chunk(b"data", DATA, 0x7EFFFFFF)), truncated),
        ("both sizes 4 GB in 1 KB", riff(FMT, chunk(b"data", DATA[:980], 0xFFFFFFF0), size=0xFFFFFFF0), "too short"),
        ("odd chunk without padding", riff(FMT, b"note\3\0\0\0abc", data), EITHER),
        ("odd data", riff(FMT, chunk(b"data", DATA + b"\1")), PACKED),
        ("data before fmt", riff(data, FMT), REJECTED),
        ("two data chunks", riff(FMT, data, data), "not audio"),
        ("two fmt chunks", riff(FMT, chunk(b"fmt ", fmt(channels=2, rate=8000)), data), EITHER),
        ("fmt twice with rate 0", riff(FMT, chunk(b"fmt ", fmt(rate=0)), data), EITHER),
        ("no fmt", riff(data), REJECTED),
        ("no data", riff(FMT), REJECTED),
        ("empty data", riff(FMT, chunk(b"data")), "no samples"),
        ("fmt of 0 bytes", riff(chunk(b"fmt "), data), REJECTED),
        ("fmt of 15 bytes", riff(chunk(b"fmt ", fmt()[:15]), data), REJECTED),
        ("fmt of 1000 bytes", riff(chunk(b"fmt ", fmt().ljust(1000, b"\0")), data), PACKED),
        ("fmt of 4 GB", riff(chunk(b"fmt ", fmt(), 0xFFFFFFF0), data), REJECTED),
        ("list of 4 GB before data", riff(FMT, chunk(b"LIST", b"INFO", 0xFFFFFFF0), data), REJECTED),
        ("list of 4 GB after data", riff(FMT, data, chunk(b"LIST", b"INFO", 0xFFFFFFF0)), PACKED),
        ("riff in riff", riff(PLAIN), REJECTED),
        ("riff behind riff", PLAIN + PLAIN, "several recordings in one file"),
        ("rifx", riff(FMT, data, magic=b"RIFX"), REJECTED),
        ("small letters", riff(FMT, data, form=b"wave"), REJECTED),
        ("20000 chunks", riff(FMT, chunk(b"note", b"ab") * 20_000, data), "not audio"),
        ("chunk names of zeros", riff(FMT, bytes(64), data), EITHER),
        ("block align 0", riff(chunk(b"fmt ", fmt(align=0)), data), EITHER),
        ("block align 65535", riff(chunk(b"fmt ", fmt(align=0xFFFF)), data), EITHER),
        ("0 bits", riff(chunk(b"fmt ", fmt(bits=0)), data), REJECTED),
        ("255 bits", riff(chunk(b"fmt ", fmt(bits=255)), data), REJECTED),
        ("format ffff", riff(chunk(b"fmt ", fmt(0xFFFF)), data), "not audio"),
        ("extensible of another kind", riff(chunk(b"fmt ", extensible + bytes(range(16))), data), "not audio"),
        ("extensible cut", riff(chunk(b"fmt ", extensible[:20]), data), REJECTED),
        ("adpcm block 0", riff(chunk(b"fmt ", fmt(17, bits=4, align=0) + b"\2\0\0\0"), data), REJECTED),
        ("adpcm block 65535", riff(chunk(b"fmt ", fmt(17, bits=4, align=65535) + b"\2\0\xff\xff"), data), EITHER),
        ("ms adpcm without coefficients", riff(chunk(b"fmt ", fmt(2, bits=4, align=256) + bytes(4)), data), REJECTED),
        ("gsm block 1", riff(chunk(b"fmt ", fmt(49, bits=0, align=1) + b"\2\0\1\0"), data), EITHER),
        ("mp3 inside that is none", riff(chunk(b"fmt ", fmt(0x55) + bytes(14)), data), REJECTED),
        ("fact of 4 billion", riff(FMT, chunk(b"fact", b"\xff" * 4), data), PACKED),
        ("4 billion cue points", riff(FMT, chunk(b"cue ", b"\xff" * 4), data), EITHER),
        ("cue points after data", riff(FMT, data, chunk(b"cue ", b"\xff" * 28)), EITHER),
        ("4 billion loops", riff(FMT, chunk(b"smpl", b"\xff" * 36), data), EITHER),
        ("peak chunk of nothing", riff(FMT, chunk(b"PEAK", b"\xff" * 8), data), EITHER),
        ("bext of 1 byte", riff(FMT, chunk(b"bext", b"x"), data), EITHER),
        ("rubbish behind", PLAIN + b"\xff" * 999, PACKED),
    ]
    return [Case(f"structure/{name}.wav", holding(data), what, guess * (what == EITHER)) for name, data, what in kinds]


def _truncated() -> list[Case]:
    """Cut within the magic, at the end of the header, and within the samples."""
    cases = []
    for form, where in {
        "WAV": "truncated or damaged",
        "RF64": "truncated or damaged",
        "W64": "truncated or damaged",
        "AIFF": "truncated or damaged",
        "AU": "truncated or damaged",
        "SVX": "truncated or damaged",
        "CAF": REJECTED,
        "FLAC": "truncated or damaged",
        "VOC": EITHER,
        "NIST": "truncated or damaged",
    }.items():
        whole = encoded(np.random.default_rng(0).standard_normal((8000, 1)) * 0.1, "PCM_16", form)
        for size in (1, 4, 11, 23):
            cases.append(Case(f"truncated/{form} {size} bytes.{form.lower()}", holding(whole[:size]), REJECTED))
        why = "libsndfile does not say what the header promised" * (where == EITHER)
        cases.append(Case(f"truncated/{form} half.{form.lower()}", holding(whole[: len(whole) // 2]), where, why))
    return cases


def cases() -> list[Case]:
    """All of this file."""
    return _rates() + _channels() + _sample_formats() + _contents() + _structure() + _truncated()
