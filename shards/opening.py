"""An audio file, wherever its bytes are, opened by libsndfile."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import soundfile
from numpy.typing import NDArray

from unfused_fast.shards import mp3
from unfused_fast.shards.places import Location, Place, shown
from unfused_fast.shards.reasons import Reason, Rejected
from unfused_fast.shards.stores import Window, open_place

LONGEST_NAME = 1000
"""Bytes. libsndfile refuses names of 1024 and more."""


class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read in one go.

    Ours: python-soundfile tells and seeks around every read of a seekable file, which costs time and fails at the end
    of a FLAC without a length; `seek` itself goes on working.
    """

    def __init__(self, file: bytes | io.BufferedIOBase, window: Window | None = None) -> None:
        """Args: window: what the bytes come from, whose failures libsndfile takes for the end of the file.

        Raises:
            Rejected: the bytes cannot be had.
            UserError: their server does not answer.
        """
        self._window = window
        try:
            super().__init__(file)
        finally:
            self.check_window()

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        """Whether `seek` works: not for GSM, G.72x, NMS, nor for DWVW, of which libsndfile says that it does."""
        return bool(super().seekable()) and not self.subtype.startswith("DWVW")

    def read(self, *args: Any, **options: Any) -> NDArray[Any]:
        """As soundfile's. Raises Rejected as well: the bytes cannot be had."""
        try:
            samples: NDArray[Any] = super().read(*args, **options)
        finally:
            self.check_window()
        return samples

    def check_window(self) -> None:
        """Raises what the window could not raise through libsndfile: Rejected or UserError."""
        failure = None if self._window is None else self._window.failure
        if isinstance(failure, OSError):
            raise Rejected(Reason.UNREADABLE, shown(failure.strerror or str(failure))) from failure
        if failure is not None:
            raise failure


def open_audio(location: Location) -> ForwardFile:
    """An open file. Raises Rejected, or UserError as open_place()."""
    window = None
    try:
        if isinstance(location, Place):
            source = open_place(location)
            window = source.raw if isinstance(source.raw, Window) else None
        else:
            status = location.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise Rejected(Reason.UNREADABLE, "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device")
            source = location.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise Rejected(Reason.UNREADABLE, getattr(error, "strerror", None) or str(error)) from error
    if window is not None:
        window.raises = False
    try:
        if not source.seek(0, io.SEEK_END):
            raise Rejected(Reason.EMPTY)
        source.seek(0)
        file = ForwardFile(_name(location, source.fileno()) if isinstance(location, Path) else source, window)
        if file.format == "MP3":
            place = source.tell()
            if not mp3.has_length(source) and (counted := mp3.with_length(source, location)) is not None:
                file.check_window()
                file.close()
                return ForwardFile(counted)
            source.seek(place)
        return file
    except soundfile.SoundFileError as error:
        raise Rejected(Reason.NOT_AUDIO, message(error)) from error
    except OverflowError as error:
        raise Rejected(Reason.UNREADABLE, str(error)) from error
    except TypeError as error:  # by its ending python-soundfile takes it for headerless samples
        raise Rejected(Reason.NOT_AUDIO, "headerless samples, whose rate nobody knows; convert them to WAV") from error
    finally:
        if isinstance(location, Path):
            source.close()


def _name(path: Path, descriptor: int) -> bytes:
    """What libsndfile opens: the name's bytes, so that any name works, or the open file where it is too long."""
    name = os.fsencode(path)
    return name if len(name) < LONGEST_NAME else f"/proc/self/fd/{descriptor}".encode()


def message(error: Exception) -> str:
    """libsndfile's own sentence, without the path that python-soundfile puts before it."""
    text = str(getattr(error, "error_string", error)).removeprefix("Error :").strip()
    return text.rstrip(".")[:120]
