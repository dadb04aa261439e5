"""All of a file is packed, or the reason says what is not: wrong headers, joined files, codecs, formats of others."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from unfused_fast.shards.audio import truncation as endings
from unfused_fast.shards.audio.decode import Probe, decode_samples, probe
from unfused_fast.shards.sources.reasons import Reason, Rejected

RATE = 44100
SECONDS = 3
HERTZ = (400, 900, 2000)
"""Tones of the three seconds, one behind the other: what is lost or doubled is heard."""
FRAME_SECONDS = 1152 / RATE


def _steps(channels: int = 1, rate: int = RATE) -> NDArray[np.float64]:
    """(3 s, channels): a tone a second, the second one all but silent, so that bit rates vary."""
    time = np.arange(SECONDS * rate) / rate
    number = time.astype(int)
    signal = np.sin(2 * np.pi * np.array(HERTZ)[number] * time) * np.array([0.4, 0.01, 0.4])[number]
    return np.repeat(signal[:, None], channels, axis=1)


def _mp3(channels: int = 1, rate: int = RATE, mode: str = "VARIABLE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _steps(channels, rate), rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return file.getvalue()


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The first frame, which counts the others, and these."""
    second = data.index(data[:2], 100)
    return data[:second], data[second:]


def _replaced(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _decoded(path: Path) -> NDArray[np.int16]:
    found = probe(path)
    pcm = decode_samples(path, found.frames, 0, found.samples)
    assert len(pcm) == found.samples
    return pcm


def _pitches(pcm: NDArray[np.int16]) -> list[float]:
    """Strongest frequency in the middle of each second, in hertz."""
    middles = [pcm[second * 16000 + 4000 : second * 16000 + 12000] for second in range(round(len(pcm) / 16000))]
    return [float(np.abs(np.fft.rfft(middle)).argmax() * 16000 / len(middle)) for middle in middles]


def _xing(data: bytes) -> int:
    return data.index(b"Xing" if b"Xing" in data else b"Info")


def _id3(size: int, content: bytes = b"\0") -> bytes:
    sizes = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + sizes + (content * size)[:size]


def _ape(items: bytes, flags: int) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII8x", 2000, len(items) + 32, 1, flags)


def _vbri(data: bytes) -> bytes:
    """A first frame as Fraunhofer's encoder writes it, whose count is a third of the true one."""
    first, rest = _split(data)
    return (first[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), 39)).ljust(
        len(first), b"\0"
    ) + rest


def _with_rubbish(data: bytes) -> bytes:
    """3000 bytes that are no frames between two frames of the first second."""
    first, rest = _split(data)
    place = rest.index(rest[:2], len(rest) // 6)
    return first + rest[:place] + bytes(range(1, 251)) * 12 + rest[place:]


WRONG_HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "right": lambda data: data,
    "count 0": lambda data: _replaced(data, _xing(data) + 8, bytes(4)),
    "count not flagged": lambda data: _replaced(data, _xing(data) + 7, bytes((data[_xing(data) + 7] & ~1,))),
    "count too small": lambda data: _replaced(data, _xing(data) + 8, (20).to_bytes(4, "big")),
    "vbri": _vbri,
    "no first frame": lambda data: _split(data)[1],
    "id3 twice": lambda data: _id3(300) + _id3(90_000, b"\xff\xfb\x90\0") + data,
    "id3 with a footer": lambda data: b"ID3\4\0\x10\0\0\0\x0a" + bytes(10) + b"3DI\4\0\x10\0\0\0\x0a" + data,
    "padding behind id3": lambda data: _id3(50) + bytes(5000) + data,
    "ape before": lambda data: _id3(20) + _ape(b"x" * 40, 0xA0000000) + b"x" * 40 + _ape(b"x" * 40, 0x80000000) + data,
    "tags behind": lambda data: data + _ape(b"x" * 40, 0xA0000000) + b"x" * 40 + b"TAG" + bytes(125),
    "lyrics behind": lambda data: data + b"LYRICSBEGIN" + b"la " * 999 + b"000999LYRICS200TAG" + bytes(125),
    "rubbish between frames": _with_rubbish,
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
@pytest.mark.parametrize(("channels", "rate"), [(1, 44100), (2, 44100), (2, 22050), (1, 8000)])
def test_all_of_an_mp3_is_packed_whatever_its_header_says(tmp_path: Path, name: str, channels: int, rate: int) -> None:
    path = tmp_path / "a.mp3"
    data = _mp3(channels, rate)
    path.write_bytes(WRONG_HEADERS[name](_vbri(data) if name == "vbri" else data))
    pcm = _decoded(path)
    hertz = [min(pitch, 3000) for pitch in _pitches(pcm)]
    assert abs(len(pcm) / 16000 - SECONDS) < 4 * FRAME_SECONDS * RATE / (rate if rate == 44100 else 2 * rate)
    assert hertz == pytest.approx(HERTZ, abs=5)


def test_lame_s_delay_is_left_out_where_the_count_is_wrong(tmp_path: Path) -> None:
    data = _mp3()
    (tmp_path / "a.mp3").write_bytes(data)
    (tmp_path / "b.mp3").write_bytes(_replaced(data, _xing(data) + 8, bytes(4)))
    assert probe(tmp_path / "a.mp3") == probe(tmp_path / "b.mp3") == Probe(SECONDS * RATE, RATE)
    np.testing.assert_array_equal(_decoded(tmp_path / "a.mp3"), _decoded(tmp_path / "b.mp3"))


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("between", [b"", _id3(40_000), b"TAG" + bytes(125) + _id3(20)], ids=["", "id3", "both"])
def test_joined_mp3s_are_one_sound(tmp_path: Path, mode: str, between: bytes) -> None:
    data = _mp3(mode=mode)
    (tmp_path / "a.mp3").write_bytes(data + between + data)
    pcm = _decoded(tmp_path / "a.mp3")
    assert 2 * SECONDS <= len(pcm) / 16000 < 2 * SECONDS + 3 * FRAME_SECONDS
    assert _pitches(pcm) == pytest.approx(HERTZ * 2, abs=5)


@pytest.mark.parametrize("second", [_mp3(rate=22050), _mp3(channels=2)], ids=["rate", "channels"])
def test_joined_mp3s_that_differ_are_named(tmp_path: Path, second: bytes) -> None:
    (tmp_path / "a.mp3").write_bytes(_mp3() + second)
    with pytest.raises(Rejected, match=r"^several recordings in one file: MP3 of 44100 Hz mono, behind it of \d+ Hz"):
        probe(tmp_path / "a.mp3")


def test_a_truncated_mp3_is_seen_by_its_frames(tmp_path: Path) -> None:
    data = _mp3()
    (tmp_path / "a.mp3").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(Rejected, match=r"truncated or damaged: ends after \d+ of 132300 samples"):
        probe(tmp_path / "a.mp3")


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [22050, 44100])
def test_mp3_in_wav(tmp_path: Path, mode: str, rate: int) -> None:
    frames = _split(_mp3(rate=rate, mode=mode))[1]
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate, 8000, 1, 0, 12, 1, 2, 1152, 1, 1393)
    body = b"WAVE" + _chunk(b"fmt ", fmt) + _chunk(b"fact", struct.pack("<I", SECONDS * rate)) + _chunk(b"data", frames)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    pcm = _decoded(tmp_path / "a.wav")
    assert SECONDS <= len(pcm) / 16000 < SECONDS + 3 * 1152 / rate
    assert _pitches(pcm) == pytest.approx(HERTZ, abs=5)


@pytest.mark.parametrize("frames", [1000, 7919, 8000])
@pytest.mark.parametrize(
    "kind",
    [
        *("WAV PCM_U8", "WAV PCM_24", "WAV ULAW", "WAV ALAW", "WAV IMA_ADPCM", "WAV MS_ADPCM", "WAV GSM610"),
        *("WAV G721_32", "WAV NMS_ADPCM_16"),
        *("AIFF IMA_ADPCM", "AIFF GSM610", "AIFF DWVW_16", "AIFF ULAW", "W64 MS_ADPCM", "W64 GSM610", "CAF ALAC_16"),
        *("AU G723_24", "SVX PCM_16", "WAVEX PCM_16", "RF64 PCM_16", "OGG OPUS", "OGG VORBIS", "FLAC PCM_16"),
    ],
)
def test_a_whole_file_of_any_codec_is_no_truncated_one(tmp_path: Path, kind: str, frames: int) -> None:
    """Codecs in blocks fill up the last one, and their headers count more, or less, than they hold."""
    form, subtype = kind.split()
    rate = 48000 if subtype == "OPUS" else 8000
    soundfile.write(tmp_path / "a", _steps(rate=rate)[:frames], rate, subtype, format=form)
    assert frames <= probe(tmp_path / "a").frames < frames + 1100
    _decoded(tmp_path / "a")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_named(tmp_path: Path, subtype: str) -> None:
    streams = []
    for channels in (1, 2):
        file = io.BytesIO()
        soundfile.write(file, _steps(channels, 48000), 48000, subtype, format="OGG")
        streams.append(file.getvalue())
    first, second = streams
    path = tmp_path / "a.ogg"
    path.write_bytes(first)
    assert probe(path) == Probe(SECONDS * 48000, 48000)
    gaps = [(first + bytes(100) + second, 1), (first + _id3(5000) + first, 1)]
    for chained, later in ((first + first, 1), (first + second, 1), (first + second + first, 2), *gaps):
        path.write_bytes(chained)
        with pytest.raises(Rejected, match=rf"^several recordings in one file: Ogg with {later} more behind the first"):
            probe(path)


def _chunk(name: bytes, data: bytes, size: int | None = None, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


PCM = np.random.default_rng(0).integers(-20000, 20000, 100_000).astype("<i2")
DATA = PCM.tobytes()
FMT = _chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))
LIST = _chunk(b"LIST", b"INFOISFT\5\0\0\0Lavf\0\0" + b"INAM" + struct.pack("<I", 4000) + b"n" * 4000)


def _riff(*chunks: bytes, magic: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def _rf64(promised: int, data_size: int = 0xFFFFFFFF) -> bytes:
    ds64 = _chunk(b"ds64", struct.pack("<QQQI", promised + 72, promised, promised // 2, 0))
    return _riff(ds64, FMT, _chunk(b"data", DATA, data_size), magic=b"RF64", size=0xFFFFFFFF)


def _au(promised: int) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, promised, 3, 16000, 1) + PCM.astype(">i2").tobytes()


WHOLE_WAVS = {
    "au": _au(len(DATA)),
    "au, streamed": _au(0xFFFFFFFF),
    "size 0": _riff(FMT, _chunk(b"data", DATA, 0)),
    "size 0, riff size 0": _riff(FMT, _chunk(b"data", DATA, 0), size=0),
    "size ffffffff": _riff(FMT, _chunk(b"data", DATA, 0xFFFFFFFF), size=0xFFFFFFFF),
    "size 0 of rf64": _rf64(0),
    "rf64": _rf64(len(DATA)),
    "list behind": _riff(FMT, _chunk(b"data", DATA), LIST),
    "list before": _riff(LIST, FMT, _chunk(b"data", DATA)),
    "odd size, padded": _riff(FMT, _chunk(b"data", DATA + b"\1"), LIST),
    "odd size, not padded": _riff(FMT, _chunk(b"data", DATA + b"\1")[:-1], LIST),
    "a little rubbish behind": _riff(FMT, _chunk(b"data", DATA)) + b"\xff" * 1000,
    "many zeros behind": _riff(FMT, _chunk(b"data", DATA)) + bytes(100_000),
    "id3 chunk behind": _riff(FMT, _chunk(b"data", DATA), _chunk(b"id3 ", _id3(5000))),
}


@pytest.mark.parametrize("name", WHOLE_WAVS)
def test_all_of_a_wav_is_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WHOLE_WAVS[name])
    assert probe(path) == Probe(len(PCM), 16000)
    np.testing.assert_array_equal(_decoded(path), PCM)
    np.testing.assert_array_equal(decode_samples(path, len(PCM), 90_000, 95_000), PCM[90_000:95_000])


AIFF_COMM = _chunk(b"COMM", struct.pack(">hIh", 1, 20_000, 16) + b"\x40\x0c\xfa\0\0\0\0\0\0\0", order=">")
AIFF = b"AIFF" + AIFF_COMM + _chunk(b"SSND", bytes(8) + DATA, 8 + 40_000, order=">")
LEFT_OUT = {
    "fewer than there": (_riff(FMT, _chunk(b"data", DATA, 40_000)), "promises 40000 bytes of samples, but 160000 more"),
    "rf64, fewer": (_rf64(40_000), "promises 40000 bytes of samples, but 160000 more"),
    "aiff, fewer": (b"FORM" + struct.pack(">I", len(AIFF)) + AIFF, "bytes of samples, but 160000 more"),
    "au, fewer": (_au(40_000), "promises 40000 bytes of samples, but 160000 more"),
    "au, none": (_au(0), "its header promises none, but 200000 bytes follow"),
    "two aus": (_au(len(DATA)) * 2, "several recordings in one file: 200024 bytes"),
    "two wavs": (_riff(FMT, _chunk(b"data", DATA)) * 2, "several recordings in one file: 200044 bytes"),
}


def _written(kind: str) -> bytes:
    """By libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, PCM, 16000, format=kind, subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["CAF", "W64", "FLAC"])
def test_what_follows_the_first_recording_is_named(tmp_path: Path, kind: str) -> None:
    whole, path = _written(kind), tmp_path / "a"
    for behind in (b"",) if kind == "W64" else (b"", b"\xff" * 1000):  # which libsndfile takes for samples of W64
        path.write_bytes(whole + behind)
        assert probe(path) == Probe(len(PCM), 16000)
        np.testing.assert_array_equal(_decoded(path), PCM)
    path.write_bytes(whole + whole)
    with pytest.raises(Rejected, match=r"^several recordings in one file: .* save each as a file of its own"):
        probe(path)


@pytest.mark.parametrize("kind", ["CAF", "W64"])
def test_a_size_of_64_bits_that_leaves_samples_out_is_named(tmp_path: Path, kind: str) -> None:
    whole = bytearray(_written(kind))
    start = whole.find(b"data")
    size = slice(start + 4, start + 12) if kind == "CAF" else slice(start + 16, start + 24)
    promised = struct.pack(">q", 40_004) if kind == "CAF" else struct.pack("<q", 40_024)
    assert int.from_bytes(whole[size], "big" if kind == "CAF" else "little") >= len(DATA)
    whole[size] = promised
    (tmp_path / "a").write_bytes(whole)
    with pytest.raises(Rejected, match=r"promises 4000[04] bytes of samples, but 1\d{5} more bytes follow"):
        probe(tmp_path / "a")


def test_a_second_flac_is_found_across_blocks_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _written("FLAC")
    for size in (1, 7, 1000, len(whole) - 3, len(whole) + 4):
        monkeypatch.setattr(endings, "SCANNED_BYTES", size)
        assert endings.second_flac(io.BytesIO(whole)) is None
        assert endings.second_flac(io.BytesIO(whole + whole)) == len(whole)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_header_leaves_out_is_named(tmp_path: Path, name: str) -> None:
    data, words = LEFT_OUT[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Rejected, match=words):
        probe(tmp_path / "a")


@pytest.mark.parametrize("promised", [1 << 40, 1 << 60, (1 << 63) - 1, (1 << 64) - 1])
def test_an_rf64_that_promises_what_no_file_has_is_whole_or_rejected(tmp_path: Path, promised: int) -> None:
    """As libsndfile takes the number; never an error that ends the packing of the files beside it."""
    ds64 = _chunk(b"ds64", struct.pack("<QQQI", promised, promised, promised // 2, 0))
    data = _riff(ds64, FMT, _chunk(b"data", DATA, 0xFFFFFFFF), magic=b"RF64", size=0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(data)
    try:
        frames = probe(tmp_path / "a.wav").frames
    except Rejected as rejected:
        assert str(rejected)
        return
    assert frames == len(PCM)
    np.testing.assert_array_equal(_decoded(tmp_path / "a.wav"), PCM)


@pytest.mark.parametrize("name", ["page.mp3", "page.wav", "page"])
def test_a_web_page_is_not_audio_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404" * 200)
    with pytest.raises(Rejected, match=r"^not audio: Format not recognised$"):
        probe(tmp_path / name)


def test_an_empty_data_chunk_before_another_holds_no_samples(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(_riff(FMT, _chunk(b"data", b""), LIST))
    with pytest.raises(Rejected, match=r"^no samples"):
        probe(tmp_path / "a.wav")


@pytest.mark.parametrize("behind", [b"", LIST], ids=["", "list"])
def test_a_wav_of_more_than_4_gb_whose_size_wrapped(tmp_path: Path, behind: bytes) -> None:
    """A sparse file: what its 32 bits promise are the first 200 kB of 4.3 GB."""
    path, there = tmp_path / "a.wav", (1 << 32) + len(DATA)
    rate = struct.pack("<HHIIHH", 1, 1, 768_000, 1_536_000, 2, 16)  # so fast that it is not too long
    path.write_bytes(_riff(_chunk(b"fmt ", rate), _chunk(b"data", DATA, len(DATA))))
    os.truncate(path, 44 + there)
    with path.open("r+b") as file:
        file.seek(44 + there - len(DATA))
        file.write(DATA + behind)
    found = probe(path)
    assert found.frames == there // 2 and found.rate_hz == 768_000
    end = decode_samples(path, found.frames, found.samples - 2000, found.samples)
    assert len(end) == 2000 and end.any()
    assert not decode_samples(path, found.frames, 10_000_000, 10_001_000).any()


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x1cftypM4A \0\0\2\0", "MPEG-4"),
        (b"\0\0\0\x20ftypisom", "MPEG-4"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC"),
        (_id3(100) + b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "Windows Media"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1webm", "Matroska or WebM"),
        (b"#!AMR\n", "AMR"),
        (b"#!AMR-WB\n", "AMR"),
        (b"\x0b\x77\x30\x9d", "AC-3"),
        (b"\x7f\xfe\x80\x01\xfc", "DTS"),
        (b"wvpk", "WavPack"),
        (b"MAC \x96\x0f", "Monkey's Audio"),
        (b"TTA1\1\0", "True Audio"),
        (b"MPCKSH", "Musepack"),
        (b"DSD \x1c\0\0\0", "DSD"),
        (b"FLV\x01\x05", "Flash"),
        (b"\0\0\1\xba\x44", "MPEG video"),
        ((b"\x47" + bytes(187)) * 3, "MPEG video"),
        (b"OggS\0\2" + bytes(20) + b"\1\x50Speex   1.2", "Speex"),
        (_riff(_chunk(b"fmt ", struct.pack("<HHIIHH", 0xFF, 1, 16000, 2000, 1, 0))), "a codec in WAV"),
        (_riff(_chunk(b"fmt ", struct.pack("<HHIIHH", 0x161, 1, 16000, 2000, 1, 0))), "a codec in WAV"),
    ],
)
def test_formats_that_libsndfile_does_not_read_are_named(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "a.wav").write_bytes(start + b"no sound " * 99)
    with pytest.raises(
        Rejected, match=f"^unsupported format: {name}.* convert it with: ffmpeg -i IN OUT.flac$"
    ) as caught:
        probe(tmp_path / "a.wav")
    assert caught.value.reason is Reason.UNSUPPORTED
