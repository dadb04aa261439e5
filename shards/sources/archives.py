"""Lists tar, tar.gz and zip archives without unpacking them.

All limits are ours: they bound the cost of a malicious archive before it is rejected.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory

from unfused_fast.errors import escaped
from unfused_fast.shards.sources.location import LARGEST_DEFLATED_GB, ByteLocation, Kind
from unfused_fast.shards.sources.reader import (
    CHECKED_BYTES,
    UNKNOWN_SIZE,
    ByteReader,
    InflatedGzip,
    Joined,
    Unreadable,
    gunzipped,
    open_files,
)

LARGEST_INFLATED = round(LARGEST_DEFLATED_GB * 1e9)
"""Largest deflated member of a zip in bytes."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A tar.gz is rejected where it inflates to more than both: bytes, and times its own size. Audio packs below 20."""
HEADER_BYTES = 1 << 20
"""Longest name or pax header of a tar."""
UNINDEXED_BYTES = 1 << 23
"""A tar.gz, or a member of a zip, that inflates to no more needs no file of seek points. Ours: 20 ms to inflate."""
DEEPEST_FOLDER, LONGEST_NAME = 64, 4096

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip")
_UNREAD = (".7z", ".rar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_FILE = re.compile(r"\.(tar|tar\.gz|tgz|zip|z\d\d|\d{3})$|part_?[a-z]{2}$", re.IGNORECASE)
"""End of the name of an archive or of a part of one."""
_FIRST_PIECE = re.compile(r"(.*part_?)aa", re.IGNORECASE | re.DOTALL)
_LOCAL_HEADER_BYTES, _ZIP_END = 30, b"PK\5\6"

Member = tuple[str, ByteLocation | str]
"""Name as the archive has it; its location, or why it is not read."""


def archives_among(paths: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The archives among these paths, by their endings: (path of the whole, paths of its files in order).

    Split zips (X.z01, ..., X.zip), pieces X.zip.001, ... and pieces Xpartaa, Xpartab, ... as split(1) names them.
    """
    there, found = {path for path in paths if _FILE.search(path[-8:])}, []
    lower = {path.lower(): path for path in there}
    for path in sorted(there):
        low = path.lower()
        if low.endswith(".zip"):
            found.append((path, (*_numbered(lower, low[:-4], ".z%02d"), path)))
        elif is_archive(path):
            found.append((path, (path,)))
        elif low.endswith(".001") and is_archive(path[:-4]):
            found.append((path[:-4], _numbered(lower, low[:-4], ".%03d")))
        elif (match := _FIRST_PIECE.fullmatch(path)) and f"{match[1]}ab" in there:
            letters = (f"{match[1]}{first}{second}" for first in ascii_lowercase for second in ascii_lowercase)
            found.append((match[1].rstrip("_"), tuple(takewhile(there.__contains__, letters))))
    return found


def _numbered(lower: Mapping[str, str], first: str, ending: str) -> tuple[str, ...]:
    """The paths that begin so and end in the numbers 1, 2, ... without a gap, written as `ending % number`."""
    paths = (lower.get(first + ending % number, "") for number in count(1))
    return tuple(takewhile(bool, paths))


def is_archive(name: str) -> bool:
    """Whether this is an archive in one file, by its ending."""
    return name.lower().endswith(_ENDINGS)


def is_unread_archive(name: str) -> bool:
    """Whether this is an archive of an unsupported kind."""
    return name.lower().endswith(_UNREAD)


def stem(name: str) -> str:
    """An archive's name without its ending: the usual folder to unpack it into."""
    return name[: -len(next((end for end in _ENDINGS if name.lower().endswith(end)), ""))] or name


def list_archive(
    names: tuple[str, ...], work: Path | None, largest: int
) -> tuple[dict[str, ByteLocation], list[tuple[str, str]]]:
    """(path -> location, [(name, why it is not read)]) of all members but folders; of equal paths the last counts.

    The first bytes decide what kind of archive it is, or the last: a self-extracting zip begins with a program. A
    damaged one has the name "" among those not read.

    Args:
        names: paths or URLs of its files, in order.
        work: folder for the seek points of large members of a zip and of a large tar.gz; None: a temporary one, until
            the program ends.
        largest: limit of a deflated member, in bytes.

    Raises:
        OSError: not read, no archive, or none of its members can be listed; its text is the reason.
        UserError: a server does not answer, or the disk refuses the seek points.
    """
    opened = open_files(names)
    head = opened.read_at(0, tarfile.BLOCKSIZE)
    if not head:
        raise Unreadable("empty file")
    inflated = InflatedGzip(opened) if head[:2] == b"\x1f\x8b" else None
    found: dict[str, ByteLocation] = {}
    not_read: list[tuple[str, str]] = []
    try:
        zipped = head[:2] == b"PK" or (inflated is None and not _is_tar(head) and _ZIP_END in _tail(opened))
        for name, member in _zip_members(names, opened, largest) if zipped else _tar_members(names, opened, inflated):
            why = unsafe(name) or member
            if isinstance(why, str):
                not_read.append((escaped(name), why))
            else:
                found[clean_path(name)] = why
    except Unreadable as error:
        if (not found and not not_read) or isinstance(error.__cause__, gzip.BadGzipFile):  # any member may be damaged
            raise
        not_read.append(("", str(error)))
    if inflated is not None and max((each.start + each.size for each in found.values()), default=0) > UNINDEXED_BYTES:
        index = _seek_points(work, names)
        inflated.write_index(Path(index))
        found = {path: replace(each, index=index) for path, each in found.items()}
    for path, each in found.items():
        if each.kind == Kind.ZIP_DEFLATED and each.size > UNINDEXED_BYTES:
            found[path] = replace(each, index=_seek_points(work, each))
    return found, not_read


def _seek_points(work: Path | None, of: object) -> str:
    """The file for the seek points of an archive or of a member."""
    key = hashlib.sha256(repr(of).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return str((work or Path(_temporary_folder().name)) / f"{key}.index")


@cache
def _temporary_folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="unfused-fast-")


def unsafe(name: str) -> str:
    """Why a member of this name is refused; "" for a safe name. Nothing is written, yet names end up in tables."""
    parts = clean_path(name).split("/")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        return "a control character in its name"
    if name.startswith("/"):
        return "its path is absolute"
    if re.match(r"[A-Za-z]:", name):
        return "a drive letter in its path"
    if ".." in parts:
        return "its path leads out of the archive"
    if parts == [""]:
        return "it has no name"
    if len(parts) > DEEPEST_FOLDER or len(name) > LONGEST_NAME:
        return f"its path is longer than {LONGEST_NAME} characters or {DEEPEST_FOLDER} folders"
    return ""


def clean_path(name: str) -> str:
    """The path without empty folders and those called `.`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


class _Headers(io.BufferedReader):
    """A tar of which only headers are read, none of them larger than a header may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)


def _tar_members(names: tuple[str, ...], opened: Joined, inflated: InflatedGzip | None) -> Iterator[Member]:
    listed, before, indexed = 0, -1, 0
    read_at, size = (opened.read_at, opened.size) if inflated is None else (gunzipped(opened), UNKNOWN_SIZE)
    kind, most = (Kind.STORED, size) if inflated is None else (Kind.GZIP, max(BOMB_BYTES, BOMB_RATIO * opened.size))
    bomb = f"it inflates to more than {BOMB_RATIO} times its size"
    try:
        # Small reads from a plain tar, whose members are skipped; a gzip file is inflated anyway.
        stream = _Headers(ByteReader(read_at, 0, size), 1 << 10 if inflated is None else 1 << 16)
        tar = tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all otherwise
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError("a member of negative size")
            before = tar.offset
            if inflated is not None and before > most:
                raise tarfile.ReadError(bomb)
            if inflated is not None and before - indexed > CHECKED_BYTES:  # its seek points, of bytes still in memory
                inflated.read_at(before - 1, 1)
                indexed = before
            if not member.isdir():
                why = _unread_in_tar(member)
                if not why and member.offset_data + member.size > size:
                    why = "the archive ends inside it"
                yield member.name, why or ByteLocation(names, kind, member.offset_data, member.size)
                listed += 1
        while inflated is not None and stream.read(1 << 16):  # to the end, where gzip has its CRC and size
            if stream.tell() > most:
                raise tarfile.ReadError(bomb)
        again = opened if inflated is None else inflated
        # tarfile treats a damaged header as the end, some versions after they have passed it
        if tar.offset != max(before, 0) or again.read_at(tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a damaged header")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error) as error:
        text = f"the archive is truncated or damaged after {listed} members" if listed else "no tar archive"
        if isinstance(error, gzip.BadGzipFile):
            text = "the gzip file is damaged"
        raise Unreadable(f"{text} ({str(error)[:100]})") from error


def _unread_in_tar(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file, which is not read; unpack the archive"
    if member.issym() or member.islnk():
        return f"a {'symbolic' if member.issym() else 'hard'} link, which is not followed"
    return "" if member.isreg() else "a pipe or device"


def _is_tar(head: bytes) -> bool:
    with suppress(tarfile.HeaderError):
        return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape") is not None
    return False


def _tail(opened: Joined) -> bytes:
    """The bytes among which a zip has the end of its central directory."""
    return opened.read_at(max(0, opened.size - 0x10015), 0x10015)


def _zip_members(names: tuple[str, ...], opened: Joined, largest: int) -> Iterator[Member]:
    tail = _tail(opened)
    end = tail.rfind(_ZIP_END)
    if end < 0 or len(tail) - end < 22:
        raise Unreadable("the zip has no central directory; it is truncated, or its last part is missing")
    # Source: PKWARE APPNOTE 6.3.10, section 4.3.16. 0xFFFF: a zip64 in one part.
    disk, list_disk, declared, list_start = struct.unpack_from("<4x2H2xH4xL", tail, end)
    split = 0 < disk < 0xFFFF
    if split and (len(names) != disk + 1 or list_disk > disk):
        raise Unreadable(f"{len(names)} of the {disk + 1} parts of this zip are there")
    try:
        archive = zipfile.ZipFile(io.BufferedReader(ByteReader(opened.read_at, 0, opened.size), 1 << 16))
        infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, IndexError) as error:
        raise Unreadable(f"the central directory of the zip is damaged or misplaced ({str(error)[:100]})") from error
    members = [info for info in infos if not info.orig_filename.endswith("/")]
    # zipfile counts from the part with the central directory; a split zip counts from the part of each member.
    shifts = [start - archive.start_dir + list_start for start in opened.starts] if split else [0]
    starts = [info.header_offset + shifts[min(info.volume, len(shifts) - 1)] for info in members]
    following = dict(zip(in_order := sorted(set(starts)), [*in_order, opened.size][1:], strict=True))
    taken: set[int] = set()
    for info, start in zip(members, starts, strict=True):
        why, end = _unread_in_zip(info, largest), start + _LOCAL_HEADER_BYTES + info.compress_size
        if not why and end > opened.size:
            why = "the archive ends inside it"
        # Members that share bytes can make a small zip expand without limit.
        if not why and (start in taken or end > following[start]):
            why = "it shares bytes with another member"
        taken.add(start)
        kind = Kind.ZIP_DEFLATED if info.compress_type else Kind.ZIP_STORED
        yield _zip_name(info), why or ByteLocation(names, kind, start, info.file_size, info.compress_size, info.CRC)
    if declared != len(infos) & 0xFFFF and declared != 0xFFFF:
        raise Unreadable(f"the central directory of the zip ends after {len(infos)} of {declared} members")


def _unread_in_zip(info: zipfile.ZipInfo, largest: int) -> str:
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compressed by method {info.compress_type}, which is not read; unpack the archive"
    if info.create_system == 3 and info.external_attr >> 28 == 0xA:
        return "a symbolic link, which is not followed"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "stored, but its two sizes differ"
    if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > largest:
        return f"inflates to {info.file_size:,} bytes; the limit is {largest:,}"
    return ""


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Ours: UTF-8 where it is, flagged or not, because most packers of today write it; else code page 437."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeDecodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")
