"""Headers that declare more or less than a file holds, and what follows its first recording."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from whole_files import chunk, decoded, id3, riff

from unfused_fast.shards.audio import open_audio, truncation
from unfused_fast.shards.audio.decode import Probe, decode_samples, probe
from unfused_fast.shards.sources.reasons import Rejected

PCM = np.random.default_rng(0).integers(-20000, 20000, 100_000).astype("<i2")
DATA = PCM.tobytes()
FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))
LIST = chunk(b"LIST", b"INFOISFT\5\0\0\0Lavf\0\0" + b"INAM" + struct.pack("<I", 4000) + b"n" * 4000)


def _rf64(declared: int, data_size: int = 0xFFFFFFFF) -> bytes:
    ds64 = chunk(b"ds64", struct.pack("<QQQI", declared + 72, declared, declared // 2, 0))
    return riff(ds64, FMT, chunk(b"data", DATA, data_size), magic=b"RF64", size=0xFFFFFFFF)


def _au(declared: int) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, declared, 3, 16000, 1) + PCM.astype(">i2").tobytes()


def _written(kind: str) -> bytes:
    """By libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, PCM, 16000, format=kind, subtype="PCM_16")
    return file.getvalue()


def _declaring(kind: str, declared: bytes) -> bytes:
    """A CAF or W64 with another size of its samples."""
    whole = bytearray(_written(kind))
    start = whole.find(b"data") + (4 if kind == "CAF" else 16)
    assert int.from_bytes(whole[start : start + 8], "big" if kind == "CAF" else "little") >= len(DATA)
    whole[start : start + 8] = declared
    return bytes(whole)


W64_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
READ_ON = ("W64", "NIST")
WHOLE = {
    **{kind: _written(kind) for kind in READ_ON},
    **{f"{kind}, rubbish behind": _written(kind) + b"\xff" * 900 for kind in READ_ON},
    **{f"{kind}, many zeros behind": _written(kind) + bytes(300_000) for kind in READ_ON},
    "W64, list behind": _written("W64") + b"list" + W64_GUID + struct.pack("<Q", 24 + 64_000) + b"n" * 64_000,
    **{kind: _written(kind) for kind in ("CAF", "FLAC")},
    **{f"{kind}, rubbish behind": _written(kind) + b"\xff" * 1000 for kind in ("CAF", "FLAC")},
    "au": _au(len(DATA)),
    "au, streamed": _au(0xFFFFFFFF),
    "size 0": riff(FMT, chunk(b"data", DATA, 0)),
    "size 0, riff size 0": riff(FMT, chunk(b"data", DATA, 0), size=0),
    "size ffffffff": riff(FMT, chunk(b"data", DATA, 0xFFFFFFFF), size=0xFFFFFFFF),
    "size 7ffff000": riff(FMT, chunk(b"data", DATA, 0x7FFFF000), size=0x7FFFF000),
    "size 0 of rf64": _rf64(0),
    "rf64": _rf64(len(DATA)),
    "list behind": riff(FMT, chunk(b"data", DATA), LIST),
    "list before": riff(LIST, FMT, chunk(b"data", DATA)),
    "odd size, padded": riff(FMT, chunk(b"data", DATA + b"\1"), LIST),
    "odd size, not padded": riff(FMT, chunk(b"data", DATA + b"\1")[:-1], LIST),
    "a little rubbish behind": riff(FMT, chunk(b"data", DATA)) + b"\xff" * 1000,
    "many zeros behind": riff(FMT, chunk(b"data", DATA)) + bytes(100_000),
    "id3 chunk behind": riff(FMT, chunk(b"data", DATA), chunk(b"id3 ", id3(5000))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_a_file_is_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WHOLE[name])
    assert probe(path) == Probe(len(PCM), 16000)
    np.testing.assert_array_equal(decoded(path), PCM)
    np.testing.assert_array_equal(decode_samples(path, len(PCM), 90_000, 95_000), PCM[90_000:95_000])


AIFF_COMM = chunk(b"COMM", struct.pack(">hIh", 1, 20_000, 16) + b"\x40\x0c\xfa\0\0\0\0\0\0\0", order=">")
AIFF = b"AIFF" + AIFF_COMM + chunk(b"SSND", bytes(8) + DATA, 8 + 40_000, order=">")
FEWER = r"declares 4000[04] bytes of samples, but 1\d{5} more"
SEVERAL = "^several recordings in one file: .* save each recording in a separate file"
LEFT_OUT = {
    "fewer than there": (riff(FMT, chunk(b"data", DATA, 40_000)), "declares 40000 bytes of samples, but 160000 more"),
    "rf64, fewer": (_rf64(40_000), "declares 40000 bytes of samples, but 160000 more"),
    "aiff, fewer": (b"FORM" + struct.pack(">I", len(AIFF)) + AIFF, "bytes of samples, but 160000 more"),
    "au, fewer": (_au(40_000), "declares 40000 bytes of samples, but 160000 more"),
    "au, none": (_au(0), "its header declares none, but 200000 bytes follow"),
    "two aus": (_au(len(DATA)) * 2, "several recordings in one file: 200024 bytes"),
    "two wavs": (riff(FMT, chunk(b"data", DATA)) * 2, "several recordings in one file: 200044 bytes"),
    "caf, fewer": (_declaring("CAF", struct.pack(">q", 40_004)), FEWER),
    "w64, fewer": (_declaring("W64", struct.pack("<q", 40_024)), FEWER),
    **{f"two {kind}s": (_written(kind) * 2, SEVERAL) for kind in ("CAF", "FLAC", *READ_ON)},
    **{f"{kind}, rubbish behind": (_written(kind) + b"\xff" * 64_000, "but 64000 more bytes") for kind in READ_ON},
    **{f"half of {kind}": (_written(kind)[:100_000], r"^truncated or damaged: ends after \d+ of") for kind in READ_ON},
    "empty data before a list": (riff(FMT, chunk(b"data", b""), LIST), "^no samples"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_header_leaves_out_is_named(tmp_path: Path, name: str) -> None:
    data, words = LEFT_OUT[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Rejected, match=words):
        decoded(tmp_path / "a")


@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
def test_a_second_flac_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A small one when it is decoded, a large one by its probe, across blocks of reading."""
    monkeypatch.setattr(truncation, "SCANNED_BYTES", size)
    whole, path = _written("FLAC"), tmp_path / "a.flac"
    path.write_bytes(whole + whole)
    named = f"another FLAC begins after {len(whole)} bytes"
    assert probe(path).frames == len(PCM)
    with pytest.raises(Rejected, match=named):
        decode_samples(path, len(PCM), 0, 1000)
    monkeypatch.setattr(open_audio, "AT_ONCE_BYTES", len(whole) - 1)
    with pytest.raises(Rejected, match=named):
        probe(path)
    path.write_bytes(whole)
    assert len(decoded(path)) == len(PCM)


@pytest.mark.parametrize("declared", [1 << 40, 1 << 60, (1 << 63) - 1, (1 << 64) - 1])
def test_an_rf64_that_declares_what_no_file_has_is_whole_or_rejected(tmp_path: Path, declared: int) -> None:
    """As libsndfile takes the number; never an error that ends the packing of the files next to it."""
    ds64 = chunk(b"ds64", struct.pack("<QQQI", declared, declared, declared // 2, 0))
    data = riff(ds64, FMT, chunk(b"data", DATA, 0xFFFFFFFF), magic=b"RF64", size=0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(data)
    try:
        frames = probe(tmp_path / "a.wav").frames
    except Rejected as rejected:
        assert str(rejected)
        return
    assert frames == len(PCM)
    np.testing.assert_array_equal(decoded(tmp_path / "a.wav"), PCM)


@pytest.mark.parametrize("behind", [b"", LIST], ids=["", "list"])
def test_a_wav_of_more_than_4_gb_whose_size_wrapped(tmp_path: Path, behind: bytes) -> None:
    """A sparse file: what its 32 bits declare are the first 200 kB of 4.3 GB."""
    path, there = tmp_path / "a.wav", (1 << 32) + len(DATA)
    rate = struct.pack("<HHIIHH", 1, 1, 768_000, 1_536_000, 2, 16)  # so fast that it is not too long
    path.write_bytes(riff(chunk(b"fmt ", rate), chunk(b"data", DATA, len(DATA))))
    os.truncate(path, 44 + there)
    with path.open("r+b") as file:
        file.seek(44 + there - len(DATA))
        file.write(DATA + behind)
    found = probe(path)
    assert found.frames == there // 2 and found.rate_hz == 768_000
    end = decode_samples(path, found.frames, found.samples - 2000, found.samples)
    assert len(end) == 2000 and end.any()
    assert not decode_samples(path, found.frames, 10_000_000, 10_001_000).any()
