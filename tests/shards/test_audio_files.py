"""One file -> PCM16, against soxr over the whole file, the analytic signal and Python's own wave module."""

from __future__ import annotations

import os
import re
import tracemalloc
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

from unfused_fast.shards import audio_files, mp3
from unfused_fast.shards.audio_files import Probe, decode_piece, probe, samples_16k
from unfused_fast.shards.clip_codec import decode_clip, encode_clip
from unfused_fast.shards.reasons import Reason, Rejected

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
        ("WAV", "GSM610", 8000, 1),
        ("WAV", "G721_32", 8000, 1),
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


def test_lossless_samples_that_cannot_be_sought_come_out_unchanged(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 50_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.aiff", samples, 16000, "DWVW_16")
    np.testing.assert_array_equal(decode_piece(tmp_path / "a.aiff", 50_000, 40_000, 45_000), samples[40_000:45_000])


@pytest.mark.parametrize(("rate", "seconds"), [(100, 60.0), (767_999, 1.5), (768_000, 1.5), (1_536_000, 1.2)])
def test_pieces_put_together_are_the_whole_at_any_rate(
    tmp_path: Path, write_tone: Tone, rate: int, seconds: float
) -> None:
    path = tmp_path / "a.wav"
    signal = write_tone(seconds, rate, min(440, rate / 10))
    soundfile.write(path, signal, rate, "FLOAT")
    found = probe(path)
    cuts = [found.samples * number // 4 for number in range(5)]
    joined = np.concatenate([decode_piece(path, found.frames, start, stop) for start, stop in pairwise(cuts)])
    whole = soxr.resample(signal[:, 0].astype(np.float32).astype(np.float64), rate, 16000)
    assert len(joined) == len(whole)
    assert np.abs(joined - np.clip(whole * 32768, -32768, 32767)).max() < 0.51 + 0.02


@pytest.mark.parametrize(("form", "rate"), [("WAV", 48000), ("FLAC", 44100), ("MP3", 44100), ("WAV", 16000)])
def test_spans_put_together_are_the_piece(
    tmp_path: Path, write_tone: Tone, monkeypatch: pytest.MonkeyPatch, form: str, rate: int
) -> None:
    path = tmp_path / "long"
    soundfile.write(path, write_tone(4.0, rate, 440), rate, format=form)
    at_once = _whole(path)
    monkeypatch.setattr(audio_files, "SPAN_FRAMES", 30_011)
    in_spans = _whole(path)
    assert len(in_spans) == len(at_once)
    assert np.abs(in_spans.astype(int) - at_once).max() <= 1


def test_many_channels_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    signal = np.random.default_rng(0).integers(-30000, 30000, (20_000, 1024), dtype=np.int16)
    soundfile.write(path, signal, 44100, "PCM_16")
    found = probe(path)
    tracemalloc.start()
    try:
        pcm = decode_piece(path, found.frames, 0, found.samples)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 * 2**20 < 4 * signal.size
    expected = soxr.resample(signal.mean(axis=1) / 32768, 44100, 16000) * 32768
    assert np.abs(pcm - expected).max() < 0.51 + 0.02


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_file_beyond_the_limit_is_too_long(tmp_path: Path, write_tone: Tone, form: str) -> None:
    soundfile.write(tmp_path / "a", write_tone(2.0, 16000, 440), 16000, format=form)
    assert probe(tmp_path / "a", longest_seconds=2.0) == Probe(32000, 16000)
    with pytest.raises(Rejected, match=r"^too long: more than 0\.0005 hours$"):
        probe(tmp_path / "a", longest_seconds=1.8)


def test_counting_ends_at_the_limit(tmp_path: Path, write_tone: Tone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FLAC without a length that is damaged beyond the limit: the damage is never reached."""
    path = tmp_path / "a.flac"
    soundfile.write(path, write_tone(8.0, 16000, 500), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    data[len(data) * 7 // 8 :] = bytes(len(data) - len(data) * 7 // 8)
    path.write_bytes(data)
    monkeypatch.setattr(audio_files, "BLOCK_VALUES", 4096)
    with pytest.raises(Rejected, match="damaged"):
        probe(path, longest_seconds=8.0)
    with pytest.raises(Rejected, match="too long"):
        probe(path, longest_seconds=4.0)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "SVX", "NIST"])
def test_truncation_is_seen_in_every_format_that_says_its_length(tmp_path: Path, write_tone: Tone, form: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, write_tone(1.0, 16000, 500), 16000, "PCM_16", format=form)
    assert probe(path) == Probe(16000, 16000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(Rejected, match=r"truncated or damaged: ends after 1\d{4} of (15|16)\d{3} samples"):
        probe(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_interrupted_download_of_ogg_is_truncated(tmp_path: Path, subtype: str) -> None:
    """Whatever the byte: libsndfile takes the pages that are there for the whole."""
    path = tmp_path / "a.ogg"
    noise = np.random.default_rng(0).standard_normal(160_000) * 0.1
    soundfile.write(path, noise, 16000, subtype, format="OGG")
    data = path.read_bytes()
    for tag in (b"", b"TAG" + bytes(125)):
        path.write_bytes(data + tag)
        assert probe(path) == Probe(160_000, 16000)
    ends = [found.start() for found in re.finditer(b"OggS", data)]
    assert len(ends) > 4
    for cut in [len(data) - 1, *np.linspace(ends[3], len(data) - 2, 40).astype(int).tolist(), ends[-1] + 5]:
        path.write_bytes(data[:cut])
        if not any(end <= cut < end + 4 for end in ends):
            with pytest.raises(Rejected, match="truncated or damaged: ends within a page"):
                probe(path)


@pytest.mark.parametrize(("rate", "words"), [(99, "99 Hz"), (1, "1 Hz"), (2_000_000, "2000000 Hz")])
def test_rates_that_audio_does_not_have(tmp_path: Path, write_tone: Tone, rate: int, words: str) -> None:
    soundfile.write(tmp_path / "a.wav", write_tone(1.0, 16000, 500), rate)
    with pytest.raises(Rejected, match=f"^unusable sample rate: {words}, not between 100 and 1536000 Hz"):
        probe(tmp_path / "a.wav")


@pytest.mark.parametrize("ending", ["au", "snd", "gsm", "vox", "raw"])
def test_text_is_not_taken_for_samples_by_its_ending(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"notes.{ending}").write_text("words, not samples\n" * 999)
    with pytest.raises(Rejected, match="not audio"):
        probe(tmp_path / f"notes.{ending}")


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


def test_frames_are_counted_once_for_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_length(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 16000), 16000)
    (tmp_path / "b.mp3").write_bytes((tmp_path / "a.mp3").read_bytes())
    count, calls = mp3._count, list[int]()
    monkeypatch.setattr(mp3, "_count", lambda data: calls.append(len(data)) or count(data))
    found = probe(tmp_path / "a.mp3")
    for start in range(0, 32000, 8000):
        assert len(decode_piece(tmp_path / "a.mp3", found.frames, start, start + 8000)) == 8000
    assert len(calls) == 1
    assert probe(tmp_path / "b.mp3") == found and len(calls) == 2


def test_a_name_too_long_for_libsndfile(tmp_path: Path, write_tone: Tone) -> None:
    folder = tmp_path.joinpath(*(letter * 250 for letter in "abcde"))
    folder.mkdir(parents=True)
    soundfile.write(tmp_path / "a.wav", write_tone(1.0, 16000, 440), 16000)
    (tmp_path / "a.wav").rename(folder / "a.wav")
    assert len(str(folder)) > 1024 and probe(folder / "a.wav") == Probe(16000, 16000)


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
