"""What a file says of its length, against what it holds: truncated, padded, streamed, endless, no audio."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from unfused_fast.shards.audio import decode as audio_files
from unfused_fast.shards.audio import mp3
from unfused_fast.shards.audio.decode import Probe, decode_samples, probe
from unfused_fast.shards.sources.reasons import Reason, Rejected

Tone = Callable[..., NDArray[np.float64]]


def _whole(path: Path) -> NDArray[np.int16]:
    found = probe(path)
    return decode_samples(path, found.frames, 0, found.samples)


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
    assert data.count(b"Xing") == 1
    path.write_bytes(data[data.index(data[:2], 100) :])  # what follows the Xing frame


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
    count, calls = mp3._counted, list[int]()
    monkeypatch.setattr(mp3, "_counted", lambda file, size: calls.append(size) or count(file, size))
    found = probe(tmp_path / "a.mp3")
    for start in range(0, 32000, 8000):
        assert len(decode_samples(tmp_path / "a.mp3", found.frames, start, start + 8000)) == 8000
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
