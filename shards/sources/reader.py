"""Reads the bytes of a ByteLocation at any position. Each process keeps a few archives open."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from unfused_fast.errors import UserError, cause
from unfused_fast.optional import importing
from unfused_fast.shards.sources.location import ByteLocation, Kind, is_url
from unfused_fast.shards.sources.remote import BLOCK_BYTES, RemoteFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

OPEN_ARCHIVES = 8
"""Archives that a process keeps open. Ours: members are read in random order, mostly from few archives."""
READ_BYTES = 1 << 14
"""Read at once from a member. Ours: a header in one read, and few bytes of the next member."""
GZIP_BYTES = 1 << 18
"""Read at once from a gzip file. Ours: listing one takes a third of the time that 16 KiB take."""
SPACING_BYTES, SEEK_POINTS = 1 << 20, 4096
"""Least distance of the seek points of a gzip file, and most of them. Ours: a point holds 32 KiB, so that an index
takes at most 128 MiB; reading a member costs inflating half the distance, 1 ms a MiB or two."""
CHECKED_BYTES = 1 << 22
"""Read at once for a checksum. Ours: half of what remote.py keeps."""
BOMB_CHECK_BYTES = 1 << 20
"""A deflated member of a zip that inflates to more than declared is given up after so many more bytes of the zip."""
WRONG_CRC = "its checksum (CRC) differs from the zip's central directory"
GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Of a gzip file without a name. Source: RFC 1952, section 2.3. Ours: with this before and CRC and size after it, a
deflated member of a zip is a gzip file, whose seek points spare a long recording from being inflated for each clip."""
UNKNOWN_SIZE = 1 << 62
"""Size of what a gzip file inflates to."""

ReadAt = Callable[[int, int], bytes]
"""(position, count) -> bytes, fewer only at the end. Raises OSError, or UserError: a server does not answer."""


class Unreadable(OSError):
    """Bytes that cannot be read; `str()` is the reason, without paths or secrets."""


class ByteReader(io.RawIOBase):
    """Part of what `read_at` reads, as a file."""

    def __init__(self, read_at: ReadAt, start: int, size: int) -> None:
        self._read_at, self._start, self._size, self._position = read_at, start, size, 0
        self.failure: OSError | UserError | None = None
        """Why a read failed; every later read fails too."""
        self.raises = True
        """False: a failure reads as the end of the file, for a native library that cannot pass on exceptions."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise OSError(errno.EINVAL, f"seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """As a raw file's. Raises OSError or UserError, or where `raises` is False reads nothing more."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        try:
            if self.failure is not None:
                raise self.failure
            data = self._read_at(self._start + self._position, wanted)
            if len(data) < wanted and self._size < UNKNOWN_SIZE:
                raise Unreadable("the archive ends inside it")
        except (OSError, UserError) as error:
            self.failure = error
            if self.raises:
                raise
            return 0
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class Part(NamedTuple):
    """Bytes that are read at any position; a RemoteFile is one too."""

    read_at: ReadAt
    size: int


class Joined:
    """One or several parts as one."""

    def __init__(self, parts: Sequence[Part | RemoteFile]) -> None:
        self.parts = parts
        *self.starts, self.size = accumulate((part.size for part in parts), initial=0)

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end."""
        pieces: list[bytes] = []
        for part, start, end in zip(self.parts, self.starts, [*self.starts[1:], self.size], strict=True):
            while count > 0 and start <= position < end:
                piece = part.read_at(position - start, min(count, end - position))
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)
                position, count = position + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _local_part(name: str) -> Part:
    file, lock = Path(name).open("rb", buffering=0), Lock()  # noqa: SIM115  open as long as the part

    def read_at(position: int, count: int) -> bytes:
        with lock:
            file.seek(position)
            return file.read(count)

    return Part(read_at, os.fstat(file.fileno()).st_size)


def _bytes_part(data: bytes) -> Part:
    return Part(lambda position, count: data[position : position + count], len(data))


class InflatedGzip:
    """What a gzip file inflates to, read from the nearest seek point on."""

    def __init__(self, packed: Joined, index: str = "") -> None:
        with importing("indexed_gzip", "indexed_gzip", "reading a gzip file", "pip install '.[cpu]'"):
            import indexed_gzip

        self._errors = (indexed_gzip.ZranError, OSError, EOFError, ValueError, zlib.error)
        self._packed = ByteReader(packed.read_at, 0, packed.size)
        self._file: Any = indexed_gzip.IndexedGzipFile(
            fileobj=io.BufferedReader(self._packed, 1 << 16),
            spacing=max(SPACING_BYTES, packed.size * 4 // SEEK_POINTS),
            buffer_size=GZIP_BYTES,
            index_file=index or None,
        )

    def read_at(self, position: int, count: int) -> bytes:
        """As Joined's, of the inflated bytes. Raises Unreadable: damaged; UserError: a server does not answer."""
        try:
            self._file.seek(position)
            return bytes(self._file.read(count))
        except self._errors as error:
            if isinstance(self._packed.failure, UserError):
                raise self._packed.failure from error
            words = re.split(r"\n| \[| \(file", str(error))[0][:80] or type(error).__name__
            raise Unreadable(f"compressed data are truncated or damaged ({words})") from error

    def is_sound(self) -> bool:
        """Inflates all at once, which passes every seek point; whether the CRC and size of each gzip member are right.

        indexed_gzip compares them here alone: a read begins anew at a seek point, and forgets what it summed before.
        """
        try:
            self._file.build_full_index()
        except self._errors as error:
            if self._packed.failure is not None:
                raise self._packed.failure from error
            if "CRC" in str(error):
                return False
            raise Unreadable("compressed data are truncated or damaged") from error
        return True

    def passed(self) -> int:
        """Where the last seek point is."""
        return max((inflated for inflated, _ in self._file.seek_points()), default=0)

    def write_index(self, path: Path) -> None:
        """Writes the seek points passed so far, for other processes. Raises UserError: the disk refuses them."""
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file.export_index(str(new))
            new.replace(path)
        except self._errors as error:
            raise UserError(
                f"{path}: cannot be written ({cause(error)}); make room and run the same command again"
            ) from error


def gunzipped(packed: Joined) -> ReadAt:
    """What a gzip file inflates to, for reading forwards. Raises gzip.BadGzipFile: another CRC or size than it has."""
    file = gzip.GzipFile(fileobj=io.BufferedReader(ByteReader(packed.read_at, 0, packed.size), 1 << 16))

    def read_at(position: int, count: int) -> bytes:
        try:
            file.seek(position)
            return file.read1(count)
        except gzip.BadGzipFile as error:
            if str(error).startswith("Not a gzipped file"):  # other bytes behind the last member: ignored, as gzip does
                return b""
            raise

    return read_at


def _inflated_member(packed: ByteReader, size: int, crc: int) -> ReadAt:
    """A small deflated member of a zip, inflated as far as it is read and no further than its declared size."""
    inflater, data = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()

    def read_at(position: int, count: int) -> bytes:
        while len(data) < min(position + count, size):
            unread = inflater.unconsumed_tail or packed.read(1 << 16)
            try:
                block = inflater.decompress(unread, min(1 << 16, size - len(data) + 1))
            except zlib.error as error:
                raise Unreadable(f"deflated data are damaged ({error})") from error
            data.extend(block)
            if len(data) > size:
                raise Unreadable(f"inflates to more than the {size} bytes that the zip declares")
            if not block and (not unread or inflater.eof):
                raise Unreadable(f"inflates to {len(data)} bytes, but the zip declares {size}")
            if len(data) == size and zlib.crc32(data) != crc:
                raise Unreadable(WRONG_CRC)
        return bytes(data[position : position + count])

    return read_at


def open_files(names: tuple[str, ...]) -> Joined:
    """These files, joined. Raises OSError, or UserError when a package is missing or a server does not answer."""
    return _opened(names, _stamps(names))


@lru_cache(maxsize=OPEN_ARCHIVES)
def _opened(names: tuple[str, ...], stamps: tuple[float, ...]) -> Joined:
    return Joined([RemoteFile(name) if is_url(name) else _local_part(name) for name in names])


@lru_cache(maxsize=OPEN_ARCHIVES // 2)
def _inflated(packed: ByteLocation, stamps: tuple[float, ...]) -> InflatedGzip:
    """A gzip file, or the deflated bytes of a member of a zip from `start` on."""
    files = open_files(packed.files)
    if packed.kind == Kind.GZIP:
        return InflatedGzip(files, packed.index)
    first_pass: InflatedGzip | None = None

    def read_at(position: int, count: int) -> bytes:
        if first_pass is not None and position % BOMB_CHECK_BYTES < count and first_pass.passed() > packed.size:
            raise Unreadable(wrong)
        return files.read_at(packed.start + position, count)

    wrong = f"does not inflate to the {packed.size} bytes with the checksum (CRC) that the zip declares"
    body = Part(read_at, packed.packed)
    checks = struct.pack("<LL", packed.crc, packed.size & 0xFFFFFFFF)
    as_gzip = Joined([_bytes_part(GZIP_HEADER), body, _bytes_part(checks)])
    if not Path(packed.index).exists():
        first_pass = InflatedGzip(as_gzip)
        if not first_pass.is_sound() or len(first_pass.read_at(packed.size - 1, 2)) != 1:
            raise Unreadable(wrong)
        first_pass.write_index(Path(packed.index))
        first_pass = None
    return InflatedGzip(as_gzip, packed.index)


def _stamps(names: tuple[str, ...]) -> tuple[float, ...]:
    """Inodes, sizes and times of the files, so that a replaced file is opened again."""
    status = [Path(name).stat() for name in names if not is_url(name)]
    return tuple(number for each in status for number in (each.st_ino, each.st_size, each.st_mtime_ns))


def open_location(location: ByteLocation, *, check: bool = True) -> io.BufferedReader:
    """The bytes of a location as a seekable file; its `raw` is a ByteReader with the reason of a `failure`.

    Args:
        check: whether the CRC of a stored member of a zip is compared first; behind a URL only where one request brings
            all of it. Of a deflated one it always is: of one with seek points first, of a small one at its end.

    Raises:
        OSError: nothing there, or not read; its text is the reason.
        UserError: a package is missing, or a server does not answer.
    """
    if location.kind == Kind.REFUSED:
        raise Unreadable(location.why)
    files, start, size = open_files(location.files), location.start, location.size
    read_at: ReadAt = files.read_at
    if location.kind == Kind.WHOLE:
        size = files.size
    elif location.kind == Kind.GZIP:
        archive = ByteLocation(location.files, Kind.GZIP, index=location.index)
        read_at = _inflated(archive, _stamps(location.files)).read_at
    elif location.kind != Kind.STORED:
        header = files.read_at(start, 30)
        if header[:4] != b"PK\3\4" or len(header) < 30:
            raise Unreadable("the zip has no file at the offset in its central directory")
        start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if location.kind == Kind.ZIP_STORED and check and (size <= BLOCK_BYTES or not any(map(is_url, location.files))):
        crc = 0
        for position in range(start, start + size, CHECKED_BYTES):
            crc = zlib.crc32(read_at(position, min(CHECKED_BYTES, start + size - position)), crc)
        if size and crc != location.crc:
            raise Unreadable(WRONG_CRC)
    if location.kind == Kind.ZIP_DEFLATED:
        if location.index:
            read_at = _inflated(replace(location, start=start), _stamps(location.files)).read_at
        else:
            read_at = _inflated_member(ByteReader(read_at, start, location.packed), size, location.crc)
        start = 0
    return io.BufferedReader(ByteReader(read_at, start, size), READ_BYTES)
