"""Hostile zip and tar files, most with one good member: `good.wav` has to come through, the others must do no harm."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hostile.wav_files import FMT, chunk, encoded, riff, tone

GOOD = encoded(tone(4000))
EVIL = encoded(tone(5000))
MANY = 10_000
ZEROS = 100 * 2**20


@dataclass(frozen=True)
class Archive:
    """One archive."""

    name: str
    build: Callable[[], bytes]
    packed: frozenset[str] = frozenset({"good.wav"})
    """Last parts of the names in the set. Empty: nothing, or a refusal that names the archive."""
    may: frozenset[str] = frozenset()
    """Names that may be in the set too: what reads archives differs in what it checks."""


def _zip(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _zip_with(name: str, data: bytes = EVIL) -> Callable[[], bytes]:
    return lambda: _zip(("good.wav", GOOD), (name, data))


def _zip_link() -> bytes:
    link = zipfile.ZipInfo("link.wav")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return _zip(("good.wav", GOOD), (link, b"/etc/passwd"))


def _zip_patched(place: int, new: bytes, *, local: bool = True) -> Callable[[], bytes]:
    """The second member's headers with other bytes, at the place that they have in the central directory."""

    def make() -> bytes:
        data = bytearray(_zip(("good.wav", GOOD), ("bad.wav", EVIL), method=zipfile.ZIP_STORED))
        central = data.rindex(b"PK\1\2")
        data[central + place : central + place + len(new)] = new
        if local and place < 28:
            begin = data.rindex(b"PK\3\4")
            data[begin + place - 2 : begin + place - 2 + len(new)] = new
        return bytes(data)

    return make


def _zip_overlapping() -> bytes:
    """A thousand names for the bytes of one member."""
    data = _zip(("good.wav", GOOD), method=zipfile.ZIP_STORED)
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = data[start:end]
    entries = entry + b"".join(entry.replace(b"good.wav", f"b{number:03d}.wav".encode()) for number in range(1000))
    close = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1001, 1001, len(entries), start, 0)
    return data[:start] + entries + close


def _tar(*members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for given, data in members:
            info = tarfile.TarInfo(given) if isinstance(given, str) else given
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _tar_with(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[], bytes]:
    def make() -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return _tar(("good.wav", GOOD), (info, EVIL if kind == tarfile.REGTYPE else b""))

    return make


def _tar_size(field: bytes) -> Callable[[], bytes]:
    """The last member's size field, with the checksum that belongs to it."""

    def make() -> bytes:
        data = bytearray(_tar(("good.wav", GOOD), ("bad.wav", EVIL), form=tarfile.USTAR_FORMAT))
        header = data.index(b"bad.wav")
        data[header + 124 : header + 136] = field
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        return bytes(data)

    return make


def _tar_pax(**headers: str) -> Callable[[], bytes]:
    def make() -> bytes:
        info = tarfile.TarInfo("bad.wav")
        info.pax_headers = {name.replace("_", "."): value for name, value in headers.items()}
        return _tar(("good.wav", GOOD), (info, EVIL))

    return make


def _tar_checksum() -> bytes:
    data = bytearray(_tar(("good.wav", GOOD), ("bad.wav", EVIL)))
    data[data.index(b"bad.wav") + 1] ^= 1
    return bytes(data)


def _squeezed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _bomb_wav() -> bytes:
    return riff(FMT, chunk(b"data", bytes(ZEROS // 8)))


def cases() -> list[Archive]:
    """All archives."""
    bad, none = frozenset({"bad.wav"}), frozenset[str]()
    bomb = frozenset({"good.wav", "bomb.wav"})  # silence, which is a clip like any other
    two = _zip(("good.wav", GOOD), ("bad.wav", EVIL))
    plain, noise = _tar(("good.wav", GOOD), ("bad.wav", EVIL)), np.random.default_rng(0).bytes(3000)
    squeezed = _squeezed(plain)
    inner = _zip(("inner.wav", EVIL))
    every = frozenset(f"b{number:03d}.wav" for number in range(1000))
    zips = [
        Archive("up.zip", _zip_with("../../evil.wav")),
        Archive("up in the middle.zip", _zip_with("a/../../../evil.wav")),
        Archive("absolute.zip", _zip_with("/evil.wav")),
        Archive("drive.zip", _zip_with("C:/evil.wav"), may=frozenset({"evil.wav"})),
        Archive("backslashes.zip", _zip_with("..\\..\\evil.wav"), may=frozenset({"..\\..\\evil.wav", "evil.wav"})),
        Archive("line feed.zip", _zip_with("ev\nil.wav"), may=frozenset({"ev\nil.wav"})),
        Archive("escape.zip", _zip_with("ev\x1b[31mil.wav"), may=frozenset({"ev\x1b[31mil.wav"})),
        Archive("long name.zip", _zip_with("n" * 60_000 + ".wav"), may=frozenset({"n" * 60_000 + ".wav"})),
        Archive("link.zip", _zip_link),
        Archive("folder with contents.zip", _zip_with("folder.wav/", b"x")),
        Archive("bomb.zip", lambda: _zip(("good.wav", GOOD), ("bomb.wav", _bomb_wav())), bomb),
        Archive("bomb of zeros.zip", lambda: _zip(("good.wav", GOOD), ("bomb.wav", bytes(ZEROS)))),
        Archive("zip in zip.zip", lambda: _zip(("good.wav", GOOD), ("inner.zip", inner))),
        Archive("overlapping.zip", _zip_overlapping, may=every),
        Archive("wrong crc.zip", _zip_patched(16, b"abcd"), may=bad),
        Archive("size too large.zip", _zip_patched(20, struct.pack("<II", 2**31, 2**31))),
        Archive("size 0.zip", _zip_patched(20, bytes(8))),
        Archive("offset beyond.zip", _zip_patched(42, b"\xff\xff\xff\x7f")),
        Archive("zip64 without field.zip", _zip_patched(20, b"\xff" * 8, local=False), may=bad),
        Archive("encrypted.zip", _zip_patched(8, b"\1\0")),
        Archive("method 99.zip", _zip_patched(10, b"\x63\0")),
        Archive("truncated.zip", lambda: two[: len(two) // 2], none),
        Archive("no directory.zip", lambda: two[: two.index(b"PK\1\2")], none),
        Archive("entries promised.zip", lambda: two[:-12] + b"\xff\xff" + two[-10:], may=frozenset({"good.wav"}) | bad),
        Archive("script before.zip", lambda: b"#!/bin/sh\nexit\n" + two, may=frozenset({"good.wav", "bad.wav"})),
        Archive("name twice.zip", lambda: _zip(("good.wav", EVIL), ("./good.wav", GOOD))),
        Archive("empty members.zip", lambda: _zip(("good.wav", GOOD), *((f"{n}.wav", b"") for n in range(MANY)))),
        Archive("empty.zip", lambda: _zip(), none),
        Archive("no zip.zip", lambda: noise, none),
        Archive("empty file.zip", lambda: b"", none),
    ]
    tars = [
        Archive("up.tar", _tar_with("../../evil.wav")),
        Archive("absolute.tar", _tar_with("/evil.wav")),
        Archive("line feed.tar", _tar_with("ev\nil.wav"), may=frozenset({"ev\nil.wav"})),
        Archive("link.tar", _tar_with("link.wav", tarfile.SYMTYPE, "/etc/passwd")),
        Archive("hard link.tar", _tar_with("link.wav", tarfile.LNKTYPE, "../../outside.wav")),
        Archive("hard link to itself.tar", _tar_with("link.wav", tarfile.LNKTYPE, "link.wav")),
        Archive("device.tar", _tar_with("zero.wav", tarfile.CHRTYPE)),
        Archive("pipe.tar", _tar_with("pipe.wav", tarfile.FIFOTYPE)),
        Archive("kind of its own.tar", _tar_with("z.wav", b"Z"), may=frozenset({"z.wav"})),
        Archive("negative size.tar", _tar_size(b"\xff" * 12), may=frozenset({"good.wav"})),
        Archive("size of letters.tar", _tar_size(b"abcdefghijk\0"), may=frozenset({"good.wav"})),
        Archive("size of 2^80.tar", _tar_size(b"\x80\1" + bytes(10)), may=frozenset({"good.wav"})),
        Archive("size too large.tar", _tar_size(b"07777777777\0"), may=frozenset({"good.wav"}) | bad),
        Archive("pax size negative.tar", _tar_pax(size="-1"), may=bad),
        Archive("pax size huge.tar", _tar_pax(size="9" * 30), may=bad),
        Archive("pax path up.tar", _tar_pax(path="../../evil.wav")),
        Archive("pax path of 60 KB.tar", _tar_pax(path="p/" * 30_000 + "evil.wav"), may=frozenset({"evil.wav"})),
        Archive("pax sparse.tar", _tar_pax(GNU_sparse_realsize="9" * 18, GNU_sparse_name="evil.wav"), may=bad),
        Archive("wrong checksum.tar", _tar_checksum, may=bad),
        Archive("name twice.tar", lambda: _tar(("good.wav", EVIL), ("good.wav", GOOD))),
        Archive("truncated.tar", lambda: plain[: plain.index(b"bad.wav") + 3000], may=frozenset({"good.wav"})),
        Archive("empty members.tar", lambda: _tar(("good.wav", GOOD), *((f"{n}.wav", b"") for n in range(MANY)))),
        Archive("empty.tar", lambda: _tar(), none),
        Archive("no tar.tar", lambda: noise, none),
        Archive("bomb.tar.gz", lambda: _squeezed(_tar(("good.wav", GOOD), ("bomb.wav", _bomb_wav()))), bomb),
        Archive("truncated.tar.gz", lambda: squeezed[: len(squeezed) // 2], none, may=frozenset({"good.wav"})),
        Archive("wrong crc.tar.gz", lambda: squeezed[:-8] + b"abcd" + squeezed[-4:], none, bad | {"good.wav"}),
        Archive("gz in gz.tar.gz", lambda: _squeezed(squeezed), none),
        Archive("text.tar.gz", lambda: _squeezed(b"text" * 999), none),
        Archive("no gz.tar.gz", lambda: noise, none),
    ]
    return zips + tars
