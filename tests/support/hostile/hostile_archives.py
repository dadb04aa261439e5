"""Hostile zip and tar files, most with one good member: `good.wav` has to come through, the others must do no harm."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hostile.wav_files import FMT, chunk, encoded, riff, tone

GOOD = encoded(tone(4000))
EVIL = encoded(tone(5000))
MANY = 3_000
ZEROS = 100 * 2**20
GOOD_ONE = frozenset({"good.wav"})


class Archive(NamedTuple):
    """One archive."""

    name: str
    build: Callable[[], bytes]
    why: str = ""
    """Words of what is in rejected.csv, or of the refusal of the archive."""
    packed: frozenset[str] = GOOD_ONE
    """Last parts of the names in the set. Empty: nothing, or the archive is refused."""


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


def _long_names_without_end() -> bytes:
    about = tarfile.TarInfo("././@LongLink")
    about.type, about.size = tarfile.GNUTYPE_LONGNAME, 1
    return (about.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 3000


def cases() -> list[Archive]:
    """All archives."""
    none, both = frozenset[str](), GOOD_ONE | {"bad.wav"}
    bomb = GOOD_ONE | {"bomb.wav"}  # silence, which is a clip like any other
    two = _zip(("good.wav", GOOD), ("bad.wav", EVIL))
    plain, noise = _tar(("good.wav", GOOD), ("bad.wav", EVIL)), np.random.default_rng(0).bytes(3000)
    squeezed, inner = _squeezed(plain), _zip(("inner.wav", EVIL))
    hiss = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 600_000).astype(np.float32))  # hardly compresses
    noisy = _tar(("good.wav", GOOD), ("bad.wav", hiss))
    hissing, rest = _squeezed(noisy[: len(noisy) // 2]), _squeezed(noisy[len(noisy) // 2 :])
    many = [(f"{number}.wav", b"") for number in range(MANY)]
    up, long = "its path leads out of the archive", "its path is longer than 4096 characters or 64 folders"
    control, no_list = "a control character in its name", "the zip has no central directory"
    cut, no_tar = "the archive is truncated or damaged after", "no tar archive"
    bad_gzip = "the gzip file is damaged"
    zips = [
        Archive("up.zip", _zip_with("../../evil.wav"), up),
        Archive("absolute.zip", _zip_with("/evil.wav"), "its path is absolute"),
        Archive("drive.zip", _zip_with("C:/evil.wav"), "a drive letter in its path"),
        Archive("backslashes.zip", _zip_with("..\\..\\evil.wav"), up),
        Archive("line feed.zip", _zip_with("ev\nil.wav"), control),
        Archive("long name.zip", _zip_with("n" * 60_000 + ".wav"), long),
        Archive("deep.zip", _zip_with("a/" * 100 + "evil.wav"), long),
        Archive("link.zip", _zip_link, "a symbolic link, which is not followed"),
        Archive("folder with contents.zip", _zip_with("folder.wav/", b"x")),
        Archive("bomb.zip", lambda: _zip(("good.wav", GOOD), ("bomb.wav", _bomb_wav())), "", bomb),
        Archive("bomb of zeros.zip", lambda: _zip(("good.wav", GOOD), ("bomb.wav", bytes(ZEROS))), "not audio"),
        Archive("zip in zip.zip", lambda: _zip(("good.wav", GOOD), ("inner.zip", inner)), "unpack the outer one"),
        Archive("overlapping.zip", _zip_overlapping, "it shares bytes with another member"),
        Archive("wrong crc of what is stored.zip", _zip_patched(16, b"abcd"), "its checksum (CRC) differs"),
        Archive("size too large.zip", _zip_patched(20, struct.pack("<II", 2**31, 2**31)), "the archive ends inside it"),
        Archive("two sizes.zip", _zip_patched(24, bytes(4)), "stored, but its two sizes differ"),
        Archive("size 0.zip", _zip_patched(20, bytes(8)), "empty file"),
        Archive("offset beyond.zip", _zip_patched(42, b"\xff\xff\xff\x7f"), "the archive ends inside it"),
        Archive("zip64 without field.zip", _zip_patched(20, b"\xff" * 8, local=False), "the archive ends inside it"),
        Archive("encrypted.zip", _zip_patched(8, b"\1\0"), "it is encrypted"),
        Archive("method 99.zip", _zip_patched(10, b"\x63\0"), "compressed by method 99, which is not read"),
        Archive("truncated.zip", lambda: two[: len(two) // 2], no_list, none),
        Archive("entries promised.zip", lambda: two[:-12] + b"\7\0" + two[-10:], "2 of 7 members", both),
        Archive(
            "endless list.zip", lambda: two[:-10] + b"\xf0\xff\xff\xff" + two[-6:], "central directory of the zip", none
        ),
        Archive("script before.zip", lambda: b"#!/bin/sh\nexit\n" + two, "", both),
        Archive("name twice.zip", lambda: _zip(("good.wav", EVIL), ("./good.wav", GOOD))),
        Archive("empty members.zip", lambda: _zip(("good.wav", GOOD), *many), "empty file"),
        Archive("empty.zip", lambda: _zip(), "no files in it", none),
        Archive("head of a zip.zip", lambda: b"PK\3\4" + noise, no_list, none),
        Archive("empty file.zip", lambda: b"", "empty file", none),
    ]
    tars = [
        Archive("up.tar", _tar_with("../../evil.wav"), up),
        Archive("link.tar", _tar_with("link.wav", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link, which is not"),
        Archive("hard link.tar", _tar_with("link.wav", tarfile.LNKTYPE, "../../outside.wav"), "a hard link, which is"),
        Archive("device.tar", _tar_with("zero.wav", tarfile.CHRTYPE), "a pipe or device"),
        Archive("kind of its own.tar", _tar_with("z.wav", b"Z"), "a pipe or device"),
        Archive("negative size.tar", _tar_size(b"\xff" * 12), cut),
        Archive("size of letters.tar", _tar_size(b"abcdefghijk\0"), cut),
        Archive("size of 2^80.tar", _tar_size(b"\x80\1" + bytes(10)), cut),
        Archive("size too large.tar", _tar_size(b"07777777777\0"), "the archive ends inside it"),
        Archive("pax size negative.tar", _tar_pax(size="-1"), cut),
        Archive("pax size huge.tar", _tar_pax(size="9" * 30), cut),
        Archive("pax path of 60 KB.tar", _tar_pax(path="p/" * 30_000 + "evil.wav"), long),
        Archive("pax sparse.tar", _tar_pax(GNU_sparse_size="1000000", GNU_sparse_map="0,4"), "a sparse file"),
        Archive("names of names.tar", _long_names_without_end, no_tar, none),
        Archive("wrong checksum.tar", _tar_checksum, cut),
        Archive("name twice.tar", lambda: _tar(("good.wav", EVIL), ("good.wav", GOOD))),
        Archive("truncated.tar", lambda: plain[: plain.index(b"bad.wav") + 3000], "the archive ends inside it"),
        Archive("empty members.tar", lambda: _tar(("good.wav", GOOD), *many), "empty file"),
        Archive("empty.tar", lambda: _tar(), "no files in it", none),
        Archive("no tar.tar", lambda: noise, no_tar, none),
        Archive("bomb.tar.gz", lambda: _squeezed(_tar(("good.wav", GOOD), ("bomb.wav", _bomb_wav()))), "", bomb),
        Archive("truncated.tar.gz", lambda: squeezed[: len(squeezed) // 2], cut, none),
        Archive("wrong crc.tar.gz", lambda: squeezed[:-8] + b"abcd" + squeezed[-4:], bad_gzip, none),
        Archive("wrong size.tar.gz", lambda: squeezed[:-4] + b"abcd", bad_gzip, none),
        Archive("wrong crc of noise.tar.gz", lambda: hissing[:-8] + b"abcd" + hissing[-4:], bad_gzip, none),
        Archive("wrong size of noise.tar.gz", lambda: hissing[:-4] + b"abcd", bad_gzip, none),
        Archive("wrong crc of the first.tar.gz", lambda: hissing[:-8] + b"abcd" + hissing[-4:] + rest, bad_gzip, none),
        Archive("wrong crc of the last.tar.gz", lambda: hissing + rest[:-8] + b"abcd" + rest[-4:], bad_gzip, none),
        Archive("two in one.tar.gz", lambda: hissing + rest, "", both),
        Archive("text behind.tar.gz", lambda: hissing + rest + b"text", "", both),
        Archive("zip inside.tar", lambda: _tar(("good.wav", GOOD), ("inner.zip", inner)), "unpack the outer one"),
        Archive("gz in gz.tar.gz", lambda: _squeezed(squeezed), no_tar, none),
        Archive("text.tar.gz", lambda: _squeezed(b"text" * 999), no_tar, none),
        Archive("head of a gz.tar.gz", lambda: b"\x1f\x8b\x08" + noise, no_tar, none),
    ]
    return zips + tars
