"""All of an MP3 is packed whatever its header says, or the reason says what is not; MP3 in WAV too."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from whole_files import chunk, decoded, id3

from unfused_fast.shards.audio import mp3
from unfused_fast.shards.audio.decode import Probe, probe
from unfused_fast.shards.sources.reasons import Rejected

RATE = 44100
SECONDS = 3
HERTZ = (400, 900, 2000)
"""Tones of the three seconds, one behind the other: what is lost or doubled is heard."""
FRAME_SECONDS = 1152 / RATE


def _steps(channels: int = 1, rate: int = RATE) -> NDArray[np.float64]:
    """(3 s, channels): a tone a second, the second one almost silent, so that bit rates vary."""
    time = np.arange(SECONDS * rate) / rate
    number = time.astype(int)
    signal = np.sin(2 * np.pi * np.array(HERTZ)[number] * time) * np.array([0.4, 0.01, 0.4])[number]
    return np.repeat(signal[:, None], channels, axis=1)


@cache
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


def _pitches(pcm: NDArray[np.int16]) -> list[float]:
    """Strongest frequency in the middle of each second, in hertz."""
    middles = [pcm[second * 16000 + 4000 : second * 16000 + 12000] for second in range(round(len(pcm) / 16000))]
    return [float(np.abs(np.fft.rfft(middle)).argmax() * 16000 / len(middle)) for middle in middles]


def _xing(data: bytes) -> int:
    return data.index(b"Xing" if b"Xing" in data else b"Info")


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
    "id3 twice": lambda data: id3(300) + id3(90_000, b"\xff\xfb\x90\0") + data,
    "id3 with a footer": lambda data: b"ID3\4\0\x10\0\0\0\x0a" + bytes(10) + b"3DI\4\0\x10\0\0\0\x0a" + data,
    "padding behind id3": lambda data: id3(50) + bytes(5000) + data,
    "ape before": lambda data: id3(20) + _ape(b"x" * 40, 0xA0000000) + b"x" * 40 + _ape(b"x" * 40, 0x80000000) + data,
    "tags behind": lambda data: data + _ape(b"x" * 40, 0xA0000000) + b"x" * 40 + b"TAG" + bytes(125),
    "lyrics behind": lambda data: data + b"LYRICSBEGIN" + b"la " * 999 + b"000999LYRICS200TAG" + bytes(125),
    "rubbish between frames": _with_rubbish,
}


@pytest.mark.parametrize(
    ("name", "channels", "rate"),
    [
        *((name, 1, 44100) for name in WRONG_HEADERS),
        *((name, *kind) for kind in [(2, 44100), (2, 22050), (1, 8000)] for name in ("right", "count 0", "vbri")),
    ],
)
def test_all_of_an_mp3_is_packed_whatever_its_header_says(tmp_path: Path, name: str, channels: int, rate: int) -> None:
    path = tmp_path / "a.mp3"
    data = _mp3(channels, rate)
    path.write_bytes(WRONG_HEADERS[name](data))
    pcm = decoded(path)
    hertz = [min(pitch, 3000) for pitch in _pitches(pcm)]
    assert abs(len(pcm) / 16000 - SECONDS) < 4 * FRAME_SECONDS * RATE / (rate if rate == 44100 else 2 * rate)
    assert hertz == pytest.approx(HERTZ, abs=5)


def test_lame_s_delay_is_left_out_where_the_count_is_wrong(tmp_path: Path) -> None:
    data = _mp3()
    (tmp_path / "a.mp3").write_bytes(data)
    (tmp_path / "b.mp3").write_bytes(_replaced(data, _xing(data) + 8, bytes(4)))
    assert probe(tmp_path / "a.mp3") == probe(tmp_path / "b.mp3") == Probe(SECONDS * RATE, RATE)
    np.testing.assert_array_equal(decoded(tmp_path / "a.mp3"), decoded(tmp_path / "b.mp3"))


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("between", [b"", id3(40_000), b"TAG" + bytes(125) + id3(20)], ids=["", "id3", "both"])
def test_joined_mp3s_are_one_sound(tmp_path: Path, mode: str, between: bytes) -> None:
    data = _mp3(mode=mode)
    (tmp_path / "a.mp3").write_bytes(data + between + data)
    pcm = decoded(tmp_path / "a.mp3")
    assert 2 * SECONDS <= len(pcm) / 16000 < 2 * SECONDS + 3 * FRAME_SECONDS
    assert _pitches(pcm) == pytest.approx(HERTZ * 2, abs=5)


@pytest.mark.parametrize("second", [_mp3(rate=22050), _mp3(channels=2)], ids=["rate", "channels"])
def test_joined_mp3s_that_differ_are_named(tmp_path: Path, second: bytes) -> None:
    (tmp_path / "a.mp3").write_bytes(_mp3() + second)
    with pytest.raises(Rejected, match=r"^several recordings in one file: MP3 of 44100 Hz mono, then of \d+ Hz"):
        probe(tmp_path / "a.mp3")


def test_padding_is_not_truncation_but_a_third_of_a_file_is(tmp_path: Path) -> None:
    data, path = _mp3(), tmp_path / "a.mp3"
    path.write_bytes(data[:-500])
    assert abs(len(decoded(path)) - SECONDS * 16000) < 2 * 1152
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(Rejected, match=r"truncated or damaged: ends after \d+ of 132300 samples"):
        probe(path)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_what_is_no_padding_is_truncation(tmp_path: Path, rate: int) -> None:
    """Six frames, which are half as long at low rates, are more than encoders pad."""
    data, path = _mp3(rate=rate), tmp_path / "a.mp3"
    frame = 1152 if rate == 44100 else 576
    starts = [place for place in range(len(data)) if data.startswith(data[:2], place)]
    path.write_bytes(data)
    whole = probe(path).frames
    for start in reversed(starts):
        path.write_bytes(data[:start])
        lost = whole - len(soundfile.read(path)[0])
        if lost > 5 * frame:
            break
    assert lost < 8 * frame
    with pytest.raises(Rejected, match="truncated or damaged: ends after"):
        probe(path)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [22050, 44100])
def test_mp3_in_wav(tmp_path: Path, mode: str, rate: int) -> None:
    frames = _split(_mp3(rate=rate, mode=mode))[1]
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate, 8000, 1, 0, 12, 1, 2, 1152, 1, 1393)
    body = b"WAVE" + chunk(b"fmt ", fmt) + chunk(b"fact", struct.pack("<I", SECONDS * rate)) + chunk(b"data", frames)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    pcm = decoded(tmp_path / "a.wav")
    assert SECONDS <= len(pcm) / 16000 < SECONDS + 3 * 1152 / rate
    assert _pitches(pcm) == pytest.approx(HERTZ, abs=5)


def test_mp3_without_a_length_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _split(_mp3())[1]
    (tmp_path / "a.mp3").write_bytes(data)
    monkeypatch.setattr(mp3, "LARGEST_BYTES", len(data) - 1)
    with pytest.raises(Rejected, match="unreadable: an MP3 of more than 0 MiB without a correct frame count"):
        probe(tmp_path / "a.mp3")
