"""One file -> PCM16, against soxr over the whole file, the analytic signal and Python's own wave module."""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from unfused_fast.shards import mp3
from unfused_fast.shards.audio_files import Probe, Reason, Rejected, decode_piece, probe, samples_16k
from unfused_fast.shards.clip_codec import decode_clip, encode_clip

Tone = Callable[..., NDArray[np.float64]]


def _whole(path: Path) -> NDArray[np.int16]:
    found = probe(path)
    return decode_piece(path, found.frames, 0, found.samples)


def test_16k_mono_pcm16_passes_unchanged(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    np.testing.assert_array_equal(_whole(tmp_path / "a.wav"), samples)


def test_stereo_sine_keeps_frequency_and_level(tmp_path: Path) -> None:
    time = np.arange(44100) / 44100
    left, right = 0.8 * np.sin(2 * np.pi * 1000 * time), 0.2 * np.sin(2 * np.pi * 1000 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44100, "PCM_24")
    pcm = _whole(tmp_path / "a.wav")
    assert len(pcm) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000) * 32768
    assert np.abs(pcm - expected)[200:-200].max() < 2


def test_what_is_above_8_khz_is_gone(tmp_path: Path) -> None:
    time = np.arange(48000) / 48000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 9500 * time), 48000, "PCM_24")
    with pytest.raises(Rejected, match="silent"):  # but for the edges, which are cut off here
        found = probe(tmp_path / "a.wav")
        decode_piece(tmp_path / "a.wav", found.frames, 4000, 12000)


def test_loud_float_is_clipped_not_wrapped(tmp_path: Path) -> None:
    signal = np.array([0.0, 1.5, -1.5, 1.0, -1.0, 0.5] * 500)
    soundfile.write(tmp_path / "a.wav", signal, 16000, "FLOAT")
    np.testing.assert_array_equal(_whole(tmp_path / "a.wav")[:6], [0, 32767, -32768, 32767, -32768, 16384])


@pytest.mark.parametrize("rate", [7919, 8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_length_is_soxr_s(rate: int) -> None:
    for frames in (1, 513, rate, rate + 1, 12345, 3 * rate + 7):
        assert samples_16k(frames, rate) == len(soxr.resample(np.zeros(frames, np.float32), rate, 16000))


@pytest.mark.parametrize(
    ("form", "subtype", "rate", "channels"),
    [
        ("WAV", "PCM_16", 44100, 2),
        ("WAV", "FLOAT", 7919, 1),
        ("FLAC", "PCM_24", 48000, 1),
        ("OGG", "VORBIS", 22050, 1),
        ("OGG", "OPUS", 48000, 1),
        ("MP3", "MPEG_LAYER_III", 44100, 1),
        ("AIFF", "PCM_16", 8000, 3),
        ("WAV", "PCM_16", 16000, 1),
    ],
)
def test_pieces_put_together_are_the_whole(
    tmp_path: Path, write_tone: Tone, form: str, subtype: str, rate: int, channels: int
) -> None:
    path = tmp_path / "long"
    signal = write_tone(6.3, rate, 440, channels=channels) + 0.1 * write_tone(6.3, rate, 3000, channels=channels)
    soundfile.write(path, signal, rate, subtype, format=form)
    found = probe(path)
    cuts = [found.samples * number // 5 for number in range(6)]
    pieces = [decode_piece(path, found.frames, start, stop) for start, stop in pairwise(cuts)]
    decoded, _ = soundfile.read(path, dtype="float64", always_2d=True)
    whole = soxr.resample(decoded.mean(axis=1), rate, 16000)
    joined = np.concatenate(pieces)
    assert len(joined) == len(whole) == found.samples
    assert np.abs(joined - np.clip(whole * 32768, -32768, 32767)).max() < 0.51 + 0.02


def test_header_lengths(tmp_path: Path, write_tone: Tone) -> None:
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        soundfile.write(tmp_path / form, write_tone(1.5, 32000, 500), 32000, format=form)
        assert probe(tmp_path / form) == Probe(48000, 32000)


def test_flac_from_a_stream_is_counted(tmp_path: Path, write_tone: Tone) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, write_tone(1.5, 32000, 500), 32000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36 bits of total samples, zero: unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert probe(path) == Probe(48000, 32000)
    assert len(_whole(path)) == 24000


def test_wav_from_a_stream_is_not_truncated(tmp_path: Path, write_tone: Tone) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, write_tone(1.0, 16000, 500), 16000)
    for size in (0xFFFFFFFF, 0x7FFFF000):
        data = bytearray(path.read_bytes())
        data[4:8] = data[40:44] = size.to_bytes(4, "little")
        (tmp_path / "b.wav").write_bytes(data)
        assert probe(tmp_path / "b.wav") == Probe(16000, 16000)


def _without_length(path: Path, signal: NDArray[np.float64], rate: int) -> None:
    soundfile.write(path, signal, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    data = path.read_bytes()
    assert data.count(b"Xing") == 1 and mp3.has_length(path.open("rb"))
    path.write_bytes(data[data.index(data[:2], 100) :])  # what follows the Xing frame
    assert not mp3.has_length(path.open("rb"))


@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_mp3_without_a_length_is_whole(tmp_path: Path, rate: int, channels: int, loud_first: bool) -> None:
    """Variable bit rate: by the first frame libsndfile guesses far too little, or too much."""
    path = tmp_path / "a.mp3"
    noise = np.random.default_rng(0).standard_normal((4 * rate, channels)) * 0.2
    noise[rate:] *= 1e-3 if loud_first else 1.0
    noise[:rate] *= 1.0 if loud_first else 1e-3
    _without_length(path, noise, rate)
    if rate == 44100:  # the fault that is guarded against
        assert abs(soundfile.info(path).frames - 4 * rate) > 60_000
    found = probe(path)
    assert abs(found.frames - 4 * rate) < 4 * 1152
    whole = _whole(path)
    assert abs(len(whole) - found.samples) <= 1
    quarters = [np.abs(quarter.astype(float)).mean() for quarter in np.array_split(whole, 4)]
    assert (quarters[0] > 20 * quarters[2]) if loud_first else (quarters[2] > 20 * quarters[0])


def test_mp3_padding_is_not_truncation_but_half_a_file_is(tmp_path: Path, write_tone: Tone) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, write_tone(3.0, 44100, 500), 44100, format="MP3")
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    assert abs(len(_whole(path)) - 48000) < 2 * 1152
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Rejected, match=r"truncated or damaged: ends after \d+ of 132300 samples"):
        _whole(path)


def test_mixed_files_give_their_reasons(mixed: Any) -> None:
    for name, seconds in mixed.good.items():
        assert abs(len(_whole(mixed.folder / name)) / 16000 - seconds) < 0.001, name
    for name, reason in mixed.bad.items():
        if reason == "too short":
            continue  # pack's own limit
        with pytest.raises(Rejected) as caught:
            _whole(mixed.folder / name)
        assert str(caught.value).startswith(reason), name
        assert str(mixed.folder) not in str(caught.value)


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    cases = {
        tmp_path / "pipe.wav": "pipe",
        tmp_path: "folder",
        tmp_path / "gone": "No such file",
        tmp_path / ("x" * 300): "too long",
        tmp_path / "a\0b": "null",
    }
    for path, words in cases.items():
        with pytest.raises(Rejected, match=words) as caught:
            probe(path)
        assert caught.value.reason is Reason.UNREADABLE


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_codec_is_lossless_and_readable_by_others(codec: str) -> None:
    import io

    samples = np.random.default_rng(1).integers(-32768, 32768, 3001).astype(np.int16)
    data = encode_clip(samples, codec)
    np.testing.assert_array_equal(decode_clip(data), samples)
    read, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    np.testing.assert_array_equal(read, samples)
    assert rate == 16000
    if codec == "wav":
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (
                1,
                2,
                16000,
                3001,
            )
        assert len(data) == 44 + 2 * 3001
    with pytest.raises(ValueError):
        decode_clip(data[: len(data) // 2])
