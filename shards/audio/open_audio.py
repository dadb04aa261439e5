"""An audio file, wherever its bytes are, opened by libsndfile."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

import soundfile
from numpy.typing import NDArray

from unfused_fast.errors import cause
from unfused_fast.shards.audio import mp3, truncation
from unfused_fast.shards.sources.location import ByteLocation, Location, without_secrets
from unfused_fast.shards.sources.reader import ByteReader, open_location
from unfused_fast.shards.sources.reasons import Reason, Rejected

LONGEST_NAME = 1000
"""Bytes. libsndfile refuses names of 1024 and more."""
UNSUPPORTED_ENCODING = 4
"""libsndfile's number for a known format with an unknown codec. Source: sndfile.h."""
AT_ONCE_BYTES = 1 << 22
"""FLAC up to this size is searched for a second one, and the CRC of a stored member of a zip compared, when it is
decoded, so that its bytes are read once; of larger ones by probe(). Ours: most clips are smaller, and of a long
recording many pieces are decoded."""

UNVERIFIED = ("AVR", "IRCAM", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "SD2", "SDS", "SVX", "VOC", "WVE", "XI")
"""Formats that are not packed. Ours: they are rare, their headers do not declare a length or libsndfile does not heed
it, and half a file, or two in one, would be taken for a whole one."""

HEAD_BYTES = 256
"""Of a file, after its tags, by which a format is recognised."""
_FORMATS = [
    (re.compile(start, re.DOTALL), name)
    for start, name in (
        (rb"....ftyp", "MPEG-4 audio (AAC or ALAC)"),
        (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", "AAC"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (ASF)"),
        (rb"\x1a\x45\xdf\xa3", "Matroska or WebM"),
        (rb"#!AMR", "AMR"),
        (rb"\x0b\x77|\x77\x0b", "AC-3"),
        (rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8", "DTS"),
        (rb"wvpk", "WavPack"),
        (rb"MAC ", "Monkey's Audio"),
        (rb"TTA[12]", "True Audio"),
        (rb"MPCK|MP\+", "Musepack"),
        (rb"DSD |FRM8", "DSD"),
        (rb"\.RMF|\.ra\xfd", "RealAudio"),
        (rb"FLV\x01", "Flash video"),
        (rb"\x00\x00\x01[\xb3\xba]|\x47.{187}\x47", "MPEG video"),
        (
            rb"RIFF.{4}WAVEfmt .{4}(?:[\x20\x45\x50\x64\xff]\x00|[\x60-\x63]\x01|\x8f\x02|[\x00\x01]\x20)",
            "a codec in WAV",
        ),
        (rb"OggS.{24}Speex   ", "Speex"),
        (rb"OggS.{24}\x7fFLAC", "FLAC in Ogg"),
        (rb"NIST_1A.*?embedded-shorten", "SPHERE compressed by Shorten"),
    )
]
"""Formats that libsndfile does not read. Source: each format's own definition, as file(1) has them; of WAV the codecs
of Yamaha, G.726, MPEG layer II, AAC, Windows Media, G.722, AC-3 and DTS, by RFC 2361 and its successors."""


class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read sequentially.

    Ours: python-soundfile calls tell() and seek() around every read of a seekable file, which costs time and fails at
    the end of a FLAC without a length; `seek` itself still works.
    """

    def __init__(self, file: bytes | str | io.BufferedIOBase, window: ByteReader | None = None) -> None:
        """Args: window: source of the bytes; libsndfile takes its failures for the end of the file.

        Raises:
            Rejected: the bytes cannot be read.
            UserError: their server does not answer.
        """
        self._window = window
        try:
            super().__init__(file)
        finally:
            _check_window(self._window)

    def seekable(self) -> bool:
        """No, so that soundfile reads on where it is."""
        return False

    def can_seek(self) -> bool:
        """Whether `seek` works: not for GSM, G.72x, NMS, nor for DWVW, which libsndfile reports as seekable."""
        return bool(super().seekable()) and not self.subtype.startswith("DWVW")

    def read(self, *args: Any, **options: Any) -> NDArray[Any]:
        """As soundfile's. Raises Rejected: damaged, or the bytes cannot be read."""
        try:
            samples: NDArray[Any] = super().read(*args, **options)
        except soundfile.SoundFileError as error:
            raise Rejected(Reason.DAMAGED, message(error)) from error
        finally:
            _check_window(self._window)
        return samples


def _check_window(window: ByteReader | None) -> None:
    """Raises what the window could not raise through libsndfile: Rejected or UserError."""
    failure = None if window is None else window.failure
    if isinstance(failure, OSError):
        raise Rejected(Reason.UNREADABLE, without_secrets(cause(failure))) from failure
    if failure is not None:
        raise failure


def open_audio(location: Location, frames: int | None = None) -> ForwardFile:
    """An open file.

    Args:
        frames: samples per channel, if they are known from opening it before, to decode it now: then MP3 frames are
            not counted again where libsndfile counts as many.

    Raises:
        Rejected: it cannot be read, is no audio that libsndfile reads, or holds more than libsndfile would read of it.
        UserError: as open_location().
    """
    window = None
    source: io.BufferedReader | io.BytesIO
    try:
        if isinstance(location, ByteLocation):
            source = open_location(location, check=(location.size <= AT_ONCE_BYTES) == (frames is not None))
            window = source.raw if isinstance(source.raw, ByteReader) else None
        else:
            status = location.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise Rejected(Reason.UNREADABLE, "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device")
            source = location.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise Rejected(Reason.UNREADABLE, cause(error)) from error
    if window is not None:
        window.raises = False
    path, opened = location if isinstance(location, Path) else None, source
    try:
        if not (size := source.seek(0, io.SEEK_END)):
            raise Rejected(Reason.EMPTY)
        if (whole := truncation.with_its_end(source)) is not None:
            source, path = whole, None
        source.seek(0)
        try:
            file = ForwardFile(source if path is None else _name(path, source.fileno()), window)
        except soundfile.SoundFileError as error:
            return _not_read(source, location, window, error)
        at_once = file.format == "FLAC" and size <= AT_ONCE_BYTES
        if at_once and frames is not None:
            file.close()
            source.seek(0)
            source = io.BytesIO(source.read())
            file = ForwardFile(source, window)
        place, counted = source.tell(), None
        if at_once == (frames is not None):
            _check_end(file, source)
        if file.subtype.startswith("MPEG") and (file.format != "MP3" or file.frames != frames):
            counted = _mp3_frames(source, location)
        if counted is None or (file.format == "MP3" and counted.samples == file.frames and len(counted.runs) == 1):
            source.seek(place)
            return file
        file.close()
        return ForwardFile(mp3.with_length(source, counted), window)
    except TypeError as error:  # judging by its extension, python-soundfile expects headerless samples
        raise Rejected(Reason.NOT_AUDIO, "headerless samples of unknown sample rate; convert them to WAV") from error
    finally:
        if path is not None:
            opened.close()
        _check_window(window)  # before what was made of bytes that could not be read


def _check_end(file: ForwardFile, source: BinaryIO) -> None:
    """Raises Rejected for an Ogg that ends early, for several FLAC or Ogg in one file, and for what is `UNVERIFIED`."""
    frames = int(file.frames)
    if file.format in UNVERIFIED:
        advice = "if it is whole, convert it with: sndfile-convert IN OUT.wav"
        raise Rejected(Reason.UNSUPPORTED, f"{file.format}, of which nothing tells whether it is whole; {advice}")
    if file.format == "FLAC" and (second := truncation.second_flac(source)):
        raise Rejected(Reason.JOINED, f"another FLAC begins after {second} bytes; {truncation.AS_FILES}")
    if file.format == "OGG":
        later, lacking = truncation.ogg_streams(source)
        if lacking:
            raise Rejected(Reason.DAMAGED, lacking)
        if later:
            detail = f"{later} more Ogg streams follow the first, of {frames / int(file.samplerate):.2f} s"
            raise Rejected(Reason.JOINED, f"{detail}; {truncation.AS_FILES}")


def _mp3_frames(source: BinaryIO, location: Location) -> mp3.Frames | None:
    """As mp3.frames_of. Raises Rejected for a truncated MP3, and for several in one that libsndfile cannot join."""
    counted = mp3.frames_of(source, location)
    if counted is not None and counted.other:
        first, then = mp3.described(counted.header), mp3.described(counted.other)
        raise Rejected(Reason.JOINED, f"MP3 of {first}, then of {then}; {truncation.AS_FILES}")
    if counted is not None and counted.declared_samples > counted.samples + mp3.SLACK_FRAMES * counted.frame_samples:
        raise Rejected(Reason.DAMAGED, f"ends after {counted.samples} of {counted.declared_samples} samples")
    return counted


def _not_read(
    source: io.BufferedReader, location: Location, window: ByteReader | None, error: Exception
) -> ForwardFile:
    """The MP3 that follows tags and padding which libsndfile does not skip. Raises Rejected: there is none."""
    source.seek(0)
    if source.read(8).startswith(mp3.TAGS) and (counted := _mp3_frames(source, location)) is not None:
        return ForwardFile(mp3.with_length(source, counted), window)
    source.seek(mp3.behind_tags(source))
    head = source.read(HEAD_BYTES)
    name = next((name for start, name in _FORMATS if start.match(head)), None)
    if name is None and getattr(error, "code", None) == UNSUPPORTED_ENCODING:
        name = "an unknown codec in a known format"
    if name is not None:
        advice = "convert it with: ffmpeg -i IN OUT.flac"
        raise Rejected(Reason.UNSUPPORTED, f"{name}, which libsndfile does not read; {advice}")
    raise Rejected(Reason.NOT_AUDIO, message(error)) from error


def _name(path: Path, descriptor: int) -> bytes | str:
    """What libsndfile opens: the name's bytes, so that any name works, or the open file where it is too long. On
    Windows the text, which python-soundfile passes on as such.
    """
    name = os.fsencode(path)
    if sys.platform == "win32":
        return str(path)
    return name if len(name) < LONGEST_NAME else f"/dev/fd/{descriptor}".encode()


def message(error: Exception) -> str:
    """libsndfile's own message, without the path that python-soundfile puts before it."""
    text = str(getattr(error, "error_string", error)).removeprefix("Error :").strip()
    if text.startswith("Unspecified internal error"):  # of an AIFF whose chunks it cannot follow
        return "damaged, or no audio"
    if text.startswith(("File does not exist", "Internal error")):  # of an open file named .mp3, or a broken one
        return "Format not recognised"
    return text.rstrip(".")[:120]
