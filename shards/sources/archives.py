"""What tar, tar.gz and zip archives hold, listed without unpacking them.

Limits, all ours: they are what a hostile archive may cost before it is given up.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from string import ascii_lowercase
from typing import NamedTuple

from unfused_fast.shards.sources.places import LARGEST_DEFLATED_GB, Kind
from unfused_fast.shards.sources.stores import GzipStore, JoinedStore, Store, Unreadable, Window

LARGEST_INFLATED = round(LARGEST_DEFLATED_GB * 1e9)
"""Largest deflated member of a zip in bytes."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A tar.gz is given up where it inflates to more than both: bytes, and times its own size. Audio packs below 20."""
HEADER_BYTES = 1 << 20
"""Longest name or pax header of a tar."""
LIST_BYTES = 1 << 30
"""Longest list of a zip: ten million members."""
DEEPEST_FOLDER, LONGEST_NAME = 64, 4096

_TAR, _GZIP, _ZIP = (".tar",), (".tar.gz", ".tgz"), (".zip",)
_UNREAD = (".7z", ".rar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_PART = re.compile(r"(.*part_?)aa", re.IGNORECASE | re.DOTALL)
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_LOCAL_BYTES = 30


class Entry(NamedTuple):
    """Where a member lies; see Place."""

    kind: int
    start: int
    size: int
    packed: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """An archive among the names of a folder."""

    name: str
    """What it is called, without what is only its first part's."""
    parts: tuple[str, ...]
    """Names of its files, in order."""


def archives_among(names: Collection[str]) -> list[Archive]:
    """The archives in a folder of these names, by their endings; parts of split ones together.

    Split zips (X.z01, ..., X.zip), pieces X.zip.001, ... and pieces Xpartaa, Xpartab, ... as split(1) names them.
    """
    there, found = set(names), []
    lower = {name.lower(): name for name in there}
    for name in sorted(there):
        low = name.lower()
        if low.endswith(_ZIP):
            found.append(Archive(name, (*_numbered(lower, low[:-4], ".z%02d"), name)))
        elif low.endswith((*_TAR, *_GZIP)):
            found.append(Archive(name, (name,)))
        elif low.endswith(".001") and low[:-4].endswith((*_TAR, *_GZIP, *_ZIP)):
            found.append(Archive(name[:-4], _numbered(lower, low[:-4], ".%03d")))
        elif (match := _PART.fullmatch(name)) and f"{match[1]}ab" in there:
            letters = (f"{match[1]}{first}{second}" for first in ascii_lowercase for second in ascii_lowercase)
            found.append(Archive(match[1].rstrip("_"), tuple(takewhile(there.__contains__, letters))))
    return found


def _numbered(lower: Mapping[str, str], first: str, ending: str) -> tuple[str, ...]:
    """The names that begin so and end in the numbers 1, 2, ... without a gap, written as `ending % number`."""
    names = (lower.get(first + ending % number) for number in count(1))
    return tuple(takewhile(bool, names))  # type: ignore[arg-type]


def is_archive(name: str) -> bool:
    """Whether this is an archive in one file, by its ending."""
    return name.lower().endswith((*_TAR, *_GZIP, *_ZIP))


def is_unread_archive(name: str) -> bool:
    """Whether this is an archive of a kind that is not read."""
    return name.lower().endswith(_UNREAD)


def stem(name: str) -> str:
    """An archive's name without its ending: the folder that people unpack it into."""
    for ending in (*_TAR, *_GZIP, *_ZIP):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def members(
    store: Store, largest: int = LARGEST_INFLATED
) -> tuple[Iterator[tuple[str, Entry | str]], GzipStore | None]:
    """(name as the archive has it, where it lies or why it is not read) of every member but folders, as they come.

    What the archive is, its first bytes say.

    Args:
        largest: limit of a deflated member.

    Returns:
        The members, and for a tar.gz the store whose seek points they leave behind.

    Raises:
        Unreadable: no archive; and from the iterator, where it breaks off.
    """
    head = store.read_at(0, 4)
    if not head:
        raise Unreadable("empty file")
    if head[:2] == b"\x1f\x8b":
        inflated = GzipStore(store)
        return _tar_members(inflated, store.size), inflated
    if head[:2] == b"PK":
        return _zip_members(store, largest), None
    return _tar_members(store, 0), None


def safe_parts(name: str) -> tuple[str, ...] | str:
    """The folders and the name of a member, or why it is refused. Nothing is written, yet names end in tables."""
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        return "a control character in its name"
    if name.startswith("/"):
        return "its path is absolute"
    if re.match(r"[A-Za-z]:", name):
        return "a drive letter in its path"
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        return "its path leads out of the archive"
    if not parts:
        return "it has no name"
    if len(parts) > DEEPEST_FOLDER or len(name) > LONGEST_NAME:
        return f"its path is longer than {LONGEST_NAME} characters or {DEEPEST_FOLDER} folders"
    return parts


class _Headers(io.BufferedReader):
    """A tar of which only headers are read, none of them larger than a header may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)


def _tar_members(store: Store, packed_size: int) -> Iterator[tuple[str, Entry | str]]:
    """Args: packed_size: bytes of the gzip file, 0 for a plain tar."""
    listed, before, kind = 0, -1, Kind.GZIP if packed_size else Kind.STORED
    try:
        # Small reads from a plain tar, whose members are skipped; a gzip file is inflated anyway.
        stream = _Headers(Window(store, 0, store.size), 1 << 16 if packed_size else 1 << 10)
        tar = tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all otherwise
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError("a member of negative size")
            before = tar.offset
            if packed_size and before > max(BOMB_BYTES, BOMB_RATIO * packed_size):
                raise tarfile.ReadError(f"it inflates to more than {BOMB_RATIO} times its size")
            if not member.isdir():
                why = _why_not(member)
                if not why and not packed_size and member.offset_data + member.size > store.size:
                    why = "the archive ends inside it"
                yield member.name, why or Entry(kind, member.offset_data, member.size, 0, 0)
                listed += 1
        if store.read_at(tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError("a damaged header")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        text = f"the archive is truncated or damaged behind {listed} members" if listed else "no tar archive"
        raise Unreadable(f"{text} ({str(error)[:100]})") from error


def _why_not(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file, which is not read; unpack the archive"
    if member.issym() or member.islnk():
        return f"a {'symbolic' if member.issym() else 'hard'} link, which is not followed"
    return "" if member.isreg() else "a pipe or device"


def _zip_members(store: Store, largest: int) -> Iterator[tuple[str, Entry | str]]:
    data, promised, disks, shift = _zip_list(store)
    listed: list[tuple[str, str, Entry]] = []
    place, damage = 0, ""
    try:
        for _ in range(promised):
            place = _zip_entry(data, place, disks, shift, listed)
    except (struct.error, ValueError, IndexError) as error:
        damage = f"the list of the zip is damaged behind {len(listed)} members ({error})"
    starts = sorted({entry.start for _, _, entry in listed})
    following = dict(zip(starts, [*starts, store.size][1:], strict=True))
    taken: set[int] = set()
    for name, why, entry in listed:
        end = entry.start + _LOCAL_BYTES + entry.packed
        if not why and entry.kind == Kind.ZIP_DEFLATED and entry.size > largest:
            why = f"inflates to {entry.size:,} bytes; the limit is {largest:,}"
        if not why and end > store.size:
            why = "the archive ends inside it"
        # Members that share their bytes make a small zip endless.
        if not why and (entry.start in taken or end > following[entry.start]):
            why = "its bytes are also those of another member"
        taken.add(entry.start)
        yield name, why or entry
    if damage:
        raise Unreadable(damage)


def _zip_list(store: Store) -> tuple[bytes, int, list[int], int]:
    """The list of a zip, its central directory: (bytes, members, start of each part, what offsets lack).

    Source: PKWARE APPNOTE 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3.
    """
    tail_start = max(0, store.size - _END.size - 0xFFFF)
    tail = store.read_at(tail_start, store.size - tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise Unreadable("the zip has no list at its end; it is truncated, or its last part is missing")
    _, disk, list_disk, _, promised, length, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    # A zip that was cut in pieces by another tool counts as one part.
    disks = list(store.starts) if disk and isinstance(store, JoinedStore) else [0]
    locator = tail[at - _LOCATOR.size : at] if at >= _LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":
        _, end_disk, end_offset, _ = _LOCATOR.unpack(locator)
        there = [disks[end_disk] + end_offset] if end_disk < len(disks) else []
        places = [place for place in (*there, end - len(locator) - _END64.size) if place >= 0]
        end = next((place for place in places if store.read_at(place, 4) == b"PK\6\6"), -1)
        record = store.read_at(end, _END64.size) if end >= 0 else b""
        if len(record) < _END64.size:
            raise Unreadable("the list of the zip is damaged")
        _, _, _, _, disk, list_disk, _, promised, length, offset = _END64.unpack(record)
    if len(disks) != disk + 1 or list_disk > disk:
        raise Unreadable(f"{len(disks)} of the {disk + 1} parts of this zip are there")
    if length > min(LIST_BYTES, end):
        raise Unreadable(f"a list of {length:,} bytes, more than the zip can hold")
    # The list ends where its end record begins, whatever was put before the zip.
    shift = end - length - offset - disks[list_disk]
    if shift < 0 or (shift and disk):
        raise Unreadable("the list of the zip is not where it says; parts are missing or of another zip")
    return store.read_at(end - length, length), promised, disks, shift


def _zip_entry(data: bytes, place: int, disks: list[int], shift: int, listed: list[tuple[str, str, Entry]]) -> int:
    """Adds the member that stands in the list at `place`; where the next one stands."""
    if data[place : place + 4] != b"PK\1\2":
        raise ValueError("no entry where one was promised")
    _, _, system, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, attributes, start = (
        _ENTRY.unpack_from(data, place)
    )
    name_at = place + _ENTRY.size
    extra_at = name_at + lengths[0]
    size, packed, start, disk = _zip64(data[extra_at : extra_at + lengths[1]], size, packed, start, disk)
    name = _zip_name(data[name_at:extra_at], flags)
    why = ""
    if flags & 1:
        why = "it is encrypted"
    elif method not in (0, 8):
        why = f"compressed by method {method}, which is not read; unpack the archive"
    elif system == 3 and attributes >> 28 == 0xA:
        why = "a symbolic link, which is not followed"
    elif method == 0 and packed != size:
        why = "stored, but of two sizes"
    if not name.endswith("/"):
        kind = Kind.ZIP_STORED if method == 0 else Kind.ZIP_DEFLATED
        listed.append((name, why, Entry(kind, disks[disk] + shift + start, size, packed, crc)))
    return int(extra_at + lengths[1] + lengths[2])


def _zip64(extra: bytes, size: int, packed: int, start: int, disk: int) -> tuple[int, int, int, int]:
    """Size, packed size, start and disk, from the extra field where the list has no room for them."""
    place, fields = 0, [size, packed, start, disk]
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        place += 4
        if kind == 1:
            inner = place
            for number, (full, form) in enumerate(((0xFFFFFFFF, "<Q"),) * 3 + ((0xFFFF, "<L"),)):
                if fields[number] == full:
                    (fields[number],) = struct.unpack_from(form, extra, inner)
                    inner += struct.calcsize(form)
        place += length
    return fields[0], fields[1], fields[2], fields[3]


def _zip_name(raw: bytes, flags: int) -> str:
    """Ours: UTF-8 where it is, flagged or not, because most packers of today write it; else code page 437."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = raw.decode("utf-8", "surrogateescape") if flags & 0x800 else raw.decode("cp437")
    return name.replace("\\", "/")
