"""What a file says of its length, against what it holds; formats that are joined, or that are not read."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from whole_files import chunk, decoded, id3, riff

from unfused_fast.shards.audio import decode
from unfused_fast.shards.audio.decode import Probe, probe
from unfused_fast.shards.audio.open_audio import UNVERIFIED
from unfused_fast.shards.sources.reasons import Reason, Rejected

NOISE = np.random.default_rng(0).standard_normal(160_000) * 0.1


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_file_beyond_the_limit_is_too_long(tmp_path: Path, write_tone: Any, form: str) -> None:
    soundfile.write(tmp_path / "a", write_tone(2.0, 16000, 440), 16000, format=form)
    assert probe(tmp_path / "a", longest_seconds=2.0) == Probe(32000, 16000)
    with pytest.raises(Rejected, match=r"^too long: more than 0\.0005 hours$"):
        probe(tmp_path / "a", longest_seconds=1.8)


def test_flac_from_a_stream_is_counted_up_to_the_limit(
    tmp_path: Path, write_tone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, write_tone(8.0, 16000, 500), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36 bits of total samples, zero: unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert probe(path) == Probe(128_000, 16000) and len(decoded(path)) == 128_000
    data[len(data) * 7 // 8 :] = bytes(len(data) - len(data) * 7 // 8)  # the damage is beyond the limit of 4 s
    path.write_bytes(data)
    monkeypatch.setattr(decode, "BLOCK_VALUES", 4096)
    for seconds, reason in ((8.0, "damaged"), (4.0, "too long")):
        with pytest.raises(Rejected, match=reason):
            probe(path, longest_seconds=seconds)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_interrupted_download_of_ogg_is_truncated(tmp_path: Path, subtype: str) -> None:
    """Whatever the byte: libsndfile takes the pages that are there for the whole."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, NOISE, 16000, subtype, format="OGG")
    data = path.read_bytes()
    for tag in (b"", b"TAG" + bytes(125)):
        path.write_bytes(data + tag)
        assert probe(path) == Probe(160_000, 16000)
    ends = [found.start() for found in re.finditer(b"OggS", data)]
    assert len(ends) > 4
    for cut in [len(data) - 1, *np.linspace(ends[3], len(data) - 2, 40).astype(int).tolist(), ends[-1] + 5]:
        path.write_bytes(data[:cut])
        words = "its last page is not marked" if any(end <= cut < end + 4 for end in ends) else "ends within a page"
        with pytest.raises(Rejected, match=f"truncated or damaged: {words}"):
            probe(path)
    path.write_bytes(data[: ends[-1]])
    with pytest.raises(Rejected, match=r"its last page is not marked as the end; if it is whole, .*: ffmpeg"):
        probe(path)
    for place in (ends[3] + 100, len(data) - 20):
        path.write_bytes(data[:place] + bytes((data[place] ^ 4,)) + data[place + 1 :])
        with pytest.raises(Rejected, match="truncated or damaged: a page differs from its checksum"):
            probe(path)


def test_a_name_too_long_for_libsndfile(tmp_path: Path, write_tone: Any) -> None:
    folder = tmp_path.joinpath(*(letter * 250 for letter in "abcde"))
    folder.mkdir(parents=True)
    soundfile.write(tmp_path / "a.wav", write_tone(1.0, 16000, 440), 16000)
    (tmp_path / "a.wav").rename(folder / "a.wav")
    assert len(str(folder)) > 1024 and probe(folder / "a.wav") == Probe(16000, 16000)


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


@pytest.mark.parametrize("frames", [1000, 7919, 8000])
@pytest.mark.parametrize(
    "kind",
    [
        *("WAV PCM_U8", "WAV PCM_24", "WAV ULAW", "WAV ALAW", "WAV IMA_ADPCM", "WAV MS_ADPCM", "WAV GSM610"),
        *("WAV G721_32", "WAV NMS_ADPCM_16"),
        *("AIFF IMA_ADPCM", "AIFF GSM610", "AIFF DWVW_16", "AIFF ULAW", "W64 MS_ADPCM", "W64 GSM610", "CAF ALAC_16"),
        *("AIFF PCM_S8", "AIFF DOUBLE", "CAF ALAC_32", "NIST PCM_32", "NIST ULAW", "HTK PCM_16", "FLAC PCM_S8"),
        *("AU G723_24", "WAVEX PCM_16", "RF64 PCM_16", "OGG OPUS", "OGG VORBIS", "FLAC PCM_16"),
    ],
)
def test_a_whole_file_of_any_codec_is_no_truncated_one(tmp_path: Path, kind: str, frames: int) -> None:
    """Codecs in blocks fill up the last one, and their headers count more, or less, than they hold."""
    form, subtype = kind.split()
    rate = 48000 if subtype == "OPUS" else 8000
    soundfile.write(tmp_path / "a", NOISE[:frames], rate, subtype, format=form)
    assert frames <= probe(tmp_path / "a").frames < frames + 1100
    decoded(tmp_path / "a")


@pytest.mark.parametrize("form", UNVERIFIED)
def test_a_format_that_does_not_tell_whether_it_is_whole_is_not_packed(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form.lower()}"
    soundfile.write(path, NOISE, 8000, format=form)
    said = f"^unsupported format: {form}, .* convert it with: sndfile-convert IN OUT.wav$"
    for half in (False, True):
        path.write_bytes(path.read_bytes()[: 160_000 if half else None])
        with pytest.raises(Rejected, match=said):
            probe(path)


def test_an_aiff_that_libsndfile_cannot_follow_is_damaged_or_no_audio(tmp_path: Path) -> None:
    """libsndfile says: unspecified internal error."""
    soundfile.write(tmp_path / "a", NOISE, 8000, format="AIFF")
    with (tmp_path / "a").open("ab") as file:
        file.write(chunk(b"ANNO", bytes(64_000), order=">"))
    with pytest.raises(Rejected, match=r"^not audio: damaged, or no audio$"):
        probe(tmp_path / "a")


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW", "ALAW"])
def test_a_part_of_a_sphere_is_truncated(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a", NOISE, 8000, subtype, format="NIST")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(Rejected, match=r"truncated or damaged: ends after \d+ of \d+ bytes of samples"):
        probe(tmp_path / "a")


def test_a_compressed_sphere_is_not_called_truncated_and_the_way_to_convert_it_is_shown(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a", NOISE, 16000, format="NIST")
    data = (
        (tmp_path / "a")
        .read_bytes()
        .replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00")
    )
    (tmp_path / "a").write_bytes(data[:100_000])
    said = r"SPHERE compressed by Shorten, .* convert it with: ffmpeg -i IN OUT\.flac$"
    with pytest.raises(Rejected, match=said) as caught:
        probe(tmp_path / "a")
    assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_named(tmp_path: Path, subtype: str) -> None:
    streams = []
    for channels in (1, 2):
        file = io.BytesIO()
        soundfile.write(file, np.stack([NOISE] * channels, axis=1), 48000, subtype, format="OGG")
        streams.append(file.getvalue())
    first, second = streams
    path = tmp_path / "a.ogg"
    path.write_bytes(first)
    assert probe(path) == Probe(len(NOISE), 48000)
    gaps = [(first + bytes(100) + second, 1), (first + id3(5000) + first, 1)]
    for chained, later in ((first + first, 1), (first + second, 1), (first + second + first, 2), *gaps):
        path.write_bytes(chained)
        with pytest.raises(
            Rejected, match=rf"^several recordings in one file: {later} more Ogg streams follow the first"
        ):
            probe(path)


@pytest.mark.parametrize("name", ["page.mp3", "page.wav", "page"])
def test_a_web_page_is_not_audio_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404" * 200)
    with pytest.raises(Rejected, match=r"^not audio: Format not recognised$"):
        probe(tmp_path / name)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x1cftypM4A \0\0\2\0", "MPEG-4"),
        (b"\0\0\0\x20ftypisom", "MPEG-4"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC"),
        (id3(100) + b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC"),
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
        (riff(chunk(b"fmt ", struct.pack("<HHIIHH", 0xFF, 1, 16000, 2000, 1, 0))), "a codec in WAV"),
        (riff(chunk(b"fmt ", struct.pack("<HHIIHH", 0x161, 1, 16000, 2000, 1, 0))), "a codec in WAV"),
    ],
)
def test_formats_that_libsndfile_does_not_read_are_named(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "a.wav").write_bytes(start + b"no sound " * 99)
    with pytest.raises(
        Rejected, match=f"^unsupported format: {name}.* convert it with: ffmpeg -i IN OUT.flac$"
    ) as caught:
        probe(tmp_path / "a.wav")
    assert caught.value.reason is Reason.UNSUPPORTED
