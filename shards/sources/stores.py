"""Files that hold the bytes of others, read at any place: one file, several joined, one behind a URL, a gzip inflated.

Each process keeps a few of them open.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unfused_fast.errors import UserError
from unfused_fast.optional import importing
from unfused_fast.shards.sources import remote
from unfused_fast.shards.sources.places import Kind, Place, is_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

OPEN_STORES = 8
"""Stores that a process keeps open. Ours: members come in random order, mostly from few archives."""
READ_BYTES = 1 << 14
"""Read at once from a member. Ours: a header in one read, and little too much of the next member."""
SPACING_BYTES, SEEK_POINTS = 1 << 20, 4096
"""Least distance of the seek points of a gzip file, and most of them. Ours: a point holds 32 KiB, so that an index
takes at most 128 MiB; reading a member costs inflating half the distance, 1 ms a MiB or two."""


class Unreadable(OSError):
    """Bytes that cannot be had; `str()` is the reason, without paths or secrets."""


class Store(Protocol):
    """Bytes that are read at any place."""

    size: int

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end. Raises OSError, or UserError: a server that does not answer."""


class FileStore:
    """A file on this machine."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  closed when the last reader lets go of it
        self.size = self._file.seek(0, io.SEEK_END)

    def read_at(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        pieces = []
        while count > 0 and (piece := self._file.read(count)):
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class JoinedStore:
    """Stores one behind the other."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self.size = sum(store.size for store in stores)
        self.starts = [sum(store.size for store in stores[:number]) for number in range(len(stores))]

    def read_at(self, position: int, count: int) -> bytes:
        pieces = []
        for store in self._stores:
            if count <= 0:
                break
            if position < store.size:
                piece = store.read_at(position, min(count, store.size - position))
                pieces.append(piece)
                count -= len(piece)
            position = max(0, position - store.size)
        return b"".join(pieces)


class GzipStore:
    """What a gzip file inflates to, from its nearest seek point on."""

    size = 1 << 62
    """Unknown before its end."""

    def __init__(self, packed: Store, index: str = "") -> None:
        with importing("indexed_gzip", "indexed_gzip", "reading a gzip file", "pip install '.[cpu]'"):
            import indexed_gzip

        self._errors = (indexed_gzip.ZranError, OSError, EOFError, ValueError, zlib.error)
        # An index is as good as the file that it was made of; a point every MiB costs 3 % of what lies between.
        spacing = max(SPACING_BYTES, packed.size * 4 // SEEK_POINTS)
        self._window = Window(packed, 0, packed.size)
        self._file: Any = indexed_gzip.IndexedGzipFile(
            fileobj=io.BufferedReader(self._window, 1 << 16),
            spacing=spacing,
            buffer_size=READ_BYTES,
            index_file=index or None,
        )

    def read_at(self, position: int, count: int) -> bytes:
        try:
            self._file.seek(position)
            return bytes(self._file.read(count))
        except self._errors as error:
            if isinstance(self._window.failure, UserError):
                raise self._window.failure from error
            raise Unreadable(f"gzip data are truncated or damaged ({_first_words(error)})") from error

    def write_index(self, path: Path) -> None:
        """Writes the seek points passed so far, for other processes."""
        self._file.export_index(str(path))


class DeflatedStore:
    """A deflated member of a zip, inflated as far as it is read and no further than its declared size."""

    def __init__(self, packed: Store, start: int, packed_size: int, size: int, crc: int) -> None:
        self.size = size
        self._packed, self._place, self._stop, self._crc = packed, start, start + packed_size, crc
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._data, self._sum, self._whole = bytearray(), 0, False
        self._failure: Unreadable | None = None

    def read_at(self, position: int, count: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            self._inflate(min(position + count, self.size))
        except Unreadable as error:
            self._failure = error  # what was inflated is not to be trusted by a second look either
            raise
        return bytes(self._data[position : position + count])

    def _inflate(self, wanted: int) -> None:
        """At least `wanted` bytes; at the end, that they are those that were packed. Raises Unreadable."""
        while len(self._data) < wanted:
            tail = self._inflater.unconsumed_tail
            if not tail:
                tail = self._packed.read_at(self._place, min(1 << 16, self._stop - self._place))
                self._place += len(tail)
            try:
                block = self._inflater.decompress(tail, max(1 << 16, wanted - len(self._data)))
            except zlib.error as error:
                raise Unreadable(f"deflated data are damaged ({error})") from error
            if not block and (not tail or self._inflater.eof):
                raise Unreadable(f"inflates to {len(self._data)} bytes, but the zip promises {self.size}")
            self._data += block
            self._sum = zlib.crc32(block, self._sum)
        if self._whole:
            return
        if len(self._data) > self.size:
            raise Unreadable(f"inflates to more than the {self.size} bytes that the zip promises")
        if len(self._data) == self.size:
            if self._sum != self._crc:
                raise Unreadable("its check sum (CRC) is not that of the zip's list")
            self._whole = True


class Window(io.RawIOBase):
    """Part of a store as a file of its own."""

    def __init__(self, store: Store, start: int, size: int) -> None:
        self._store, self._start, self._size, self._place = store, start, size, 0
        self.failure: OSError | UserError | None = None
        """Why bytes could not be had."""
        self.raises = True
        """False: they read as the end of the file, for a native library that knows no exceptions; see `failure`."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        place = offset + (0, self._place, self._size)[whence]
        if place < 0:
            raise ValueError(f"seek to {place}")
        self._place = place
        return place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._place)
        if wanted <= 0:
            return 0
        try:
            data = self._store.read_at(self._start + self._place, wanted)
            if len(data) < wanted and self._store.size < GzipStore.size:
                raise Unreadable("the archive ends inside it")
        except (OSError, UserError) as error:
            self.failure = error
            if self.raises:
                raise
            return 0
        view[: len(data)] = data
        self._place += len(data)
        return len(data)


def open_store(store: tuple[str, ...]) -> Store:
    """The bytes of these files, one behind the other. Raises OSError, or UserError when a package is missing."""
    return _opened(store, tuple(_stamp(name) for name in store))


@lru_cache(maxsize=OPEN_STORES)
def _opened(store: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> Store:
    """Args: stamps: size and time of the files, so that a file that was replaced is opened anew."""
    stores = [remote.RemoteStore(name) if is_url(name) else FileStore(name) for name in store]
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


@lru_cache(maxsize=OPEN_STORES // 2)
def _inflated(store: tuple[str, ...], stamps: tuple[tuple[int, int], ...], index: str) -> GzipStore:
    return GzipStore(open_store(store), index)


def _stamp(name: str) -> tuple[int, int]:
    if is_url(name):
        return 0, 0
    status = Path(name).stat()
    return status.st_size, status.st_mtime_ns


def open_place(place: Place) -> io.BufferedReader:
    """The bytes of a place as a seekable file; its `raw` is a Window, whose `failure` says what went wrong in reading.

    Raises:
        OSError: nothing there, or not read; its text is the reason.
        UserError: a package is missing, or a server does not answer.
    """
    if place.kind == Kind.REFUSED:
        raise Unreadable(place.why)
    return io.BufferedReader(_window(place), READ_BYTES)


def _window(place: Place) -> Window:
    if place.kind == Kind.GZIP:
        stamps = tuple(_stamp(name) for name in place.store)
        return Window(_inflated(place.store, stamps, place.index), place.start, place.size)
    store = open_store(place.store)
    if place.kind == Kind.WHOLE:
        return Window(store, 0, store.size)
    if place.kind == Kind.STORED:
        return Window(store, place.start, place.size)
    header = store.read_at(place.start, 30)
    if header[:4] != b"PK\3\4" or len(header) < 30:
        raise Unreadable("the zip has no file where its list says")
    start = place.start + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if place.kind == Kind.ZIP_STORED:
        return Window(store, start, place.size)
    return Window(DeflatedStore(store, start, place.packed, place.size, place.crc), 0, place.size)


def _first_words(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" [")[0][:80] or type(error).__name__
