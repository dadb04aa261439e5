"""One file -> PCM16, against soxr over the whole file, the analytic signal and Python's own wave module."""

from __future__ import annotations

import io
import tracemalloc
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from whole_files import decoded

from unfused_fast.shards.audio import decode
from unfused_fast.shards.audio.codec import decode_clip, encode_clip
from unfused_fast.shards.audio.decode import decode_samples, probe, samples_16k
from unfused_fast.shards.sources.reasons import Rejected

Tone = Callable[..., NDArray[np.float64]]


def test_loud_float_is_clipped_not_wrapped(tmp_path: Path) -> None:
    signal = np.array([0.0, 1.5, -1.5, 1.0, -1.0, 0.5] * 500)
    soundfile.write(tmp_path / "a.wav", signal, 16000, "FLOAT")
    np.testing.assert_array_equal(decoded(tmp_path / "a.wav")[:6], [0, 32767, -32768, 32767, -32768, 16384])


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_float_in_the_scale_of_integers_is_rejected(tmp_path: Path, rate: int, channels: int) -> None:
    signal = np.repeat([[0.0], [-10000.0], [3.0]] * 500, channels, axis=1)
    soundfile.write(tmp_path / "a.wav", signal, rate, "FLOAT")
    with pytest.raises(Rejected, match=r"samples out of range: up to 10000, .*; divide 16-bit integers by 32768"):
        decoded(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [7919, 8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_length_is_soxr_s(rate: int) -> None:
    for frames in (1, 513, rate, rate + 1, 12345, 3 * rate + 7):
        assert samples_16k(frames, rate) == len(soxr.resample(np.zeros(frames, np.float32), rate, 16000))


@pytest.mark.parametrize(
    ("form", "subtype", "rate", "channels", "seconds"),
    [
        ("WAV", "PCM_16", 44100, 2, 6.3),
        ("WAV", "FLOAT", 7919, 1, 6.3),
        ("FLAC", "PCM_24", 48000, 1, 6.3),
        ("OGG", "VORBIS", 22050, 1, 6.3),
        ("OGG", "OPUS", 48000, 1, 6.3),
        ("MP3", "MPEG_LAYER_III", 44100, 1, 6.3),
        ("AIFF", "PCM_16", 8000, 3, 6.3),
        ("WAV", "PCM_16", 16000, 1, 6.3),
        ("WAV", "GSM610", 8000, 1, 6.3),
        ("WAV", "G721_32", 8000, 1, 6.3),
        ("WAV", "FLOAT", 100, 1, 60.0),
        ("WAV", "FLOAT", 767_999, 1, 1.5),
        ("WAV", "FLOAT", 768_000, 1, 1.5),
        ("WAV", "FLOAT", 1_536_000, 1, 1.2),
    ],
)
def test_pieces_put_together_are_the_whole(
    tmp_path: Path, write_tone: Tone, form: str, subtype: str, rate: int, channels: int, seconds: float
) -> None:
    path = tmp_path / "long"
    signal = write_tone(seconds, rate, min(440, rate / 10), channels=channels)
    signal += 0.1 * write_tone(seconds, rate, min(3000, rate / 3), channels=channels)
    soundfile.write(path, signal, rate, subtype, format=form)
    found = probe(path)
    cuts = [found.samples * number // 5 for number in range(6)]
    joined = np.concatenate([decode_samples(path, found.frames, start, stop) for start, stop in pairwise(cuts)])
    read, _ = soundfile.read(path, dtype="float64", always_2d=True)
    whole = soxr.resample(read.mean(axis=1), rate, 16000)
    assert len(joined) == len(whole) == found.samples
    assert np.abs(joined - np.clip(whole * 32768, -32768, 32767)).max() < 0.51 + 0.02


def test_lossless_samples_that_cannot_be_sought_come_out_unchanged(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 50_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.aiff", samples, 16000, "DWVW_16")
    np.testing.assert_array_equal(decode_samples(tmp_path / "a.aiff", 50_000, 40_000, 45_000), samples[40_000:45_000])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_file_that_changed_since_its_header_was_read(tmp_path: Path, write_tone: Tone, form: str) -> None:
    soundfile.write(tmp_path / "a", write_tone(3.0, 16000, 440), 16000, format=form)
    found = probe(tmp_path / "a")
    soundfile.write(tmp_path / "a", write_tone(4.0, 16000, 440), 16000, format=form)
    now = probe(tmp_path / "a").frames
    with pytest.raises(Rejected, match=f"changed since its header was read, from {found.frames} to {now} samples"):
        decode_samples(tmp_path / "a", found.frames, 0, 16000)


@pytest.mark.parametrize(("form", "rate"), [("WAV", 48000), ("FLAC", 44100), ("MP3", 44100), ("WAV", 16000)])
def test_spans_put_together_are_the_piece(
    tmp_path: Path, write_tone: Tone, monkeypatch: pytest.MonkeyPatch, form: str, rate: int
) -> None:
    path = tmp_path / "long"
    soundfile.write(path, write_tone(4.0, rate, 440), rate, format=form)
    at_once = decoded(path)
    monkeypatch.setattr(decode, "SPAN_FRAMES", 30_011)
    in_spans = decoded(path)
    assert len(in_spans) == len(at_once)
    assert np.abs(in_spans.astype(int) - at_once).max() <= 1


def test_many_channels_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    signal = np.random.default_rng(0).integers(-30000, 30000, (5_000, 1024), dtype=np.int16)
    soundfile.write(path, signal, 44100, "PCM_16")
    found = probe(path)
    tracemalloc.start()
    try:
        pcm = decode_samples(path, found.frames, 0, found.samples)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 * 2**20 < 4 * signal.size
    expected = soxr.resample(signal.mean(axis=1) / 32768, 44100, 16000) * 32768
    assert np.abs(pcm - expected).max() < 0.51 + 0.02


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_codec_is_lossless_and_readable_by_others(codec: str) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, 3001).astype(np.int16)
    data = encode_clip(samples, codec)
    np.testing.assert_array_equal(decode_clip(data), samples)
    read, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    np.testing.assert_array_equal(read, samples)
    assert rate == 16000
    if codec == "wav":
        with wave.open(io.BytesIO(data)) as file:
            assert file.getparams()[:4] == (1, 2, 16000, 3001)
        assert len(data) == 44 + 2 * 3001
    with pytest.raises(ValueError):
        decode_clip(data[: len(data) // 2])
