"""What is no audio, names that tools trip over, and what a file system holds besides files."""

from __future__ import annotations

import os
import socket
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

from hostile.case import PACKED, UNLISTED, Case, cases_in
from hostile.wav_files import DATA, FMT, PLAIN, chunk, encoded, riff, tone


def _rubbish() -> list[Case]:
    text = b"these are words, not samples\n" * 100
    random = bytes((number * number * 31 + number // 7) & 0xFF for number in range(20_000))
    kinds: list[tuple[str, bytes, str]] = [
        ("empty.wav", b"", "empty file"),
        ("one byte.wav", b"R", "not audio"),
        ("ffs.wav", b"\xff" * 65_536, "not audio"),
        ("zeros.wav", bytes(65_536), "not audio"),
        ("random.flac", random, "not audio"),
        ("text.wav", text, "not audio"),
        ("text.mp3", text, "not audio"),
        ("text.au", text, "not audio"),
        ("text.snd", text, "not audio"),
        ("page.html", b"<!DOCTYPE html><title>404</title>", "not audio"),
        ("document.wav", b"%PDF-1.7\n" + random, "not audio"),
        ("film.wav", b"\0\0\0\x20ftypisom" + random, "unsupported format: MPEG-4"),
        ("wav in text.wav", b"\n" + PLAIN, "not audio"),
    ]
    return cases_in("rubbish/{}", kinds)


def _names() -> list[Case]:
    accent = "é ä"
    names = [
        "new\nline.wav",
        "tab\t.wav",
        "bell\a and escape \x1b[31mred\x1b[0m.wav",
        "c1 \x9b31m.wav",
        "x" * 251 + ".wav",
        "ü" * 125 + "a.wav",
        b"caf\xe9.wav".decode("utf-8", "surrogateescape"),
        b"\xff\xfe.wav".decode("utf-8", "surrogateescape"),
        "-rf.wav",
        "--overwrite",
        "dots at the end...",
        "space at the end.wav ",
        " space at the start.wav",
        "'single' \"double\".wav",
        "%s%n%d.wav",
        "back\\slash.wav",
        "star * ? [a].wav",
        "$(touch pwned); `id` | &.wav",
        "=1+1,@x.wav",
        "[bold]markup[/bold] [link=x].wav",
        unicodedata.normalize("NFC", accent) + ".wav",
        unicodedata.normalize("NFD", accent) + ".wav",
        "right \u202eto left.wav",
        "line\u2028separator.wav",
        "🦇 bat 🎧.wav",
        "CON.wav",
        "a..wav",
        "%2e%2e%2fescape.wav",
        "C:drive.wav",
        "UPPER.wav",
        "upper.wav",
    ]
    cases = [Case(f"names/{name}", encoded(tone(3000 + number)), PACKED) for number, name in enumerate(names)]
    return [*cases, Case("names/..hidden/../.hidden.wav", PLAIN, UNLISTED)]


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(path.parent / target if not target.startswith("/dev") else target)


def _outside(path: Path) -> None:
    """A link to a file beside the corpus folder, as deep as it may be."""
    outside = path.parent.parent.parent / "outside.wav"
    outside.write_bytes(encoded(tone(5000)))
    path.symlink_to(outside)


def _outside_folder(path: Path) -> None:
    folder = path.parent.parent.parent / "outside"
    folder.mkdir()
    (folder / "inner.wav").write_bytes(encoded(tone(5001)))
    path.symlink_to(folder)


def _hard_link(path: Path) -> None:
    path.hardlink_to(path.parent.parent / "contents/full scale square.wav")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # its address may have 107 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _closed(path: Path) -> None:
    path.write_bytes(PLAIN)
    path.chmod(0)


def _sparse(head: bytes, size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return write


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inner.wav").write_bytes(encoded(tone(5002)))


def _file_system() -> list[Case]:
    large = 100 * 10**9
    ds64 = struct.pack("<QQQI", large - 8, large - 80, (large - 80) // 2, 0)
    rf64 = b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", ds64) + FMT + b"data\xff\xff\xff\xff" + DATA
    wide = riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1024, 768_000, 0, 2048, 16)), b"data\xff\xff\xff\xff" + DATA)
    closed = "unreadable" if os.geteuid() else PACKED  # root may read everything
    return [
        Case("links/to a file outside.wav", _outside, PACKED),
        Case("links/to a folder outside", _outside_folder, UNLISTED),
        Case("links/to a folder outside/inner.wav", lambda path: None, PACKED),
        Case("links/round", _link("."), UNLISTED),
        Case("links/up", _link(".."), UNLISTED),
        Case("links/self.wav", _link("self.wav"), "unreadable"),
        Case("links/broken.wav", _link("nowhere.wav"), "unreadable"),
        Case("links/hard.wav", _hard_link, PACKED),
        Case("links/endless.wav", _link("/dev/zero"), "unreadable"),
        Case("files/pipe.wav", os.mkfifo, UNLISTED),
        Case("files/socket.wav", _socket, UNLISTED),
        Case("files/closed.wav", _closed, closed),
        Case("files/folder.wav", _folder, UNLISTED),
        Case("files/folder.wav/inner.wav", lambda path: None, PACKED),
        Case("files/100 GB of zeros.wav", _sparse(b"\0", large), "not audio"),
        Case("files/100 GB of zeros.mp3", _sparse(b"\0", large), "not audio"),
        Case("files/100 GB of zeros behind rf64.wav", _sparse(rf64, large), "too long"),
        Case("files/1024 channels at 768 kHz.wav", _sparse(wide, 90_000 * 2048), PACKED),
    ]


def cases() -> list[Case]:
    """All of this file."""
    return _rubbish() + _names() + _file_system()
