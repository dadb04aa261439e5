"""One shard: a tar and its DALI index, written together and read back.

The index is the text that DALI's wds2idx writes ("v1.2 N", then per sample: extension, offset, size and name of each
member), made from the offsets at which the members are written.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from typing import IO, Any, NamedTuple

from unfused_fast.errors import UserError, unreadable

INDEX_VERSION = "v1.2"
"""Source: IndexCreator.index_file_version in DALI's wds2idx.py."""
OWNER = "unfused"
"""User and group of the members, which have no time either. Ours: the same input gives the same bytes."""
WRITE_BUFFER_BYTES = 1 << 20
KEY_DIGITS = 9
"""Digits of a key, which is its clip_id. Ours: names sort as ids do, and one billion clips are enough."""
COPY_AGAIN = "copy it again, or pack again with: unfused-fast shard SOURCE OUT --overwrite"
REPACK = "make it again with: wds2idx TAR IDX, or pack again with: unfused-fast shard SOURCE OUT --overwrite"

_BLOCK = tarfile.BLOCKSIZE
_ID_FIELD = '{"clip_id": '


class Member(NamedTuple):
    """A file in a tar. Ours: no dataclass, because an index of 100,000 clips makes 300,000 of them."""

    extension: str
    offset: int
    """Of its first byte, in bytes from the start of the tar."""
    size: int
    name: str


class ShardWriter:
    """A tar and its index being written."""

    def __init__(self, tar: Path) -> None:
        """Opens `tar`; the index is next to it, with the extension .idx."""
        self.tar, self.clips = tar, 0
        self._offset = 0
        self._lines: list[str] = []
        self._file: IO[bytes] = tar.open("wb", buffering=WRITE_BUFFER_BYTES)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Writes one sample, its members in order of extension."""
        line = []
        for extension in sorted(members):
            name, data = f"{key}.{extension}", members[extension]
            self._file.write(member_header(name, len(data)))
            self._file.write(data)
            self._file.write(bytes(-len(data) % _BLOCK))
            line.append(f"{extension} {self._offset + _BLOCK} {len(data)} {name}")
            self._offset += _BLOCK + padded(len(data))
        self._lines.append(" ".join(line))
        self.clips += 1

    def close(self) -> int:
        """Writes the end of the tar and the index, and gives the size of both files in bytes."""
        end = self._offset + 2 * _BLOCK
        size = -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        self._file.write(bytes(size - self._offset))
        self._file.close()
        text = _index_text(self._lines)
        index_path(self.tar).write_text(text, encoding="ascii", newline="\n")
        return size + len(text)

    def give_up(self) -> None:
        """Closes the tar as it is, to be deleted."""
        with contextlib.suppress(OSError):  # a full disk refuses the last bytes again
            self._file.close()


def clip_key(clip_id: int) -> str:
    """The key of a clip: its id, `KEY_DIGITS` long, so that names sort as ids do."""
    return f"{clip_id:0{KEY_DIGITS}d}"


def clip_json(row: Mapping[str, Any], label_names: Sequence[str]) -> bytes:
    """Content of the .json member: some columns of the clips table, and label_names, the names of its labels.

    Ours: clip_id comes first and is padded to `KEY_DIGITS`, so that a clip can be renumbered in its place. json.dumps
    takes three times as long.
    """
    names = ", ".join([_quoted(label_names[label]) for label in row["labels"]])
    fold, group = row["fold"], row["group"]
    return (
        f'{_ID_FIELD}{row["clip_id"]:{KEY_DIGITS}d}, "fold": {"null" if fold is None else fold}, '
        f'"group": {"null" if group is None else _quoted(group)}, "label": {row["label"]}, "label_names": [{names}], '
        f'"labels": {[*row["labels"]]}, "seconds": {row["seconds"]!r}, "source": {_quoted(row["source"])}, '
        f'"split": {_quoted(row["split"])}}}'
    ).encode()


def renumber(tar: Path, first_id: int) -> None:
    """Gives the clips of a shard the ids from `first_id` on, in place, and flushes it to the disk.

    Only names, .index and the clip_id of .json change, none of them in length; so this may be stopped at any moment and
    done again. Ours: how many clips come before a shard is known only when all shards before it are made.
    """
    index = index_path(tar)
    samples, lines = read_index(index), []
    with tar.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for clip_id, members in enumerate(samples, first_id):
            key, line = clip_key(clip_id), []
            for member in members:
                name = f"{key}.{member.extension}"
                content[member.offset - _BLOCK : member.offset] = member_header(name, member.size)
                if member.extension == "index":
                    content[member.offset : member.offset + member.size] = key.encode()
                elif member.extension == "json":
                    start = member.offset + len(_ID_FIELD)
                    content[start : start + KEY_DIGITS] = f"{clip_id:{KEY_DIGITS}d}".encode()
                line.append(f"{member.extension} {member.offset} {member.size} {name}")
            lines.append(" ".join(line))
        content.flush()
        os.fsync(file.fileno())
    replace_file(index, _index_text(lines).encode("ascii"))


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: the old or the new one is always there, complete; a failure leaves no other file."""
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def index_path(tar: Path) -> Path:
    """Path of the DALI index of a tar."""
    return tar.with_suffix(".idx")


def read_index(index: Path) -> list[list[Member]]:
    """The members of every sample. Raises UserError: missing, or not an index of this version."""
    try:
        lines = index.read_text(encoding="utf-8").splitlines() or ["an empty file"]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(index, error, REPACK) from error
    head = lines[0].split()
    if (
        len(head) != 2
        or head[0] != INDEX_VERSION
        or not head[1].isdecimal()
        or int(head[1]) != len(lines) - 1
        or not lines[1:]
    ):
        found = f"{lines[0][:40]!r} and {len(lines) - 1} samples"
        raise UserError(
            f"{index}: holds {found}, but a DALI index holds {INDEX_VERSION!r}, a count and that many samples; {REPACK}"
        )
    samples = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split(" ")
        sizes = words[1::4] + words[2::4]
        extensions = [name.partition(".")[2] for name in words[3::4]]
        if len(words) % 4 or not "".join(sizes).isdecimal() or "" in sizes or words[::4] != extensions:
            raise UserError(
                f"{index}, line {number}: {line[:60]!r}, not extension, offset, size and name of members; {REPACK}"
            )
        samples.append(members_of(line))
    return samples


def members_of(line: str) -> list[Member]:
    """The members of one sample, a line of an index."""
    words = line.split(" ")
    places = range(0, len(words), 4)
    return [Member(words[at], int(words[at + 1]), int(words[at + 2]), words[at + 3]) for at in places]


def clips_listed(index: Path) -> int:
    """Clips of an index, by its first line alone. Raises UserError as read_index, where that is none."""
    try:
        with index.open("rb") as file:
            return int(file.readline(64).split()[1])
    except (OSError, ValueError, IndexError):
        return len(read_index(index))


def check_index(tar: Path, index: Path, cut_short: bool = False) -> list[list[Member]]:
    """Checks both ends of a tar against its index, without a full read -> the index's samples.

    Args:
        cut_short: the tar may end early.

    Raises:
        UserError: a file is missing, the index is malformed or its members overlap, the tar ends before or continues
            after the last member of the index, or the headers of the first and last member do not match the index.
    """
    samples, end = read_index(index), 0
    for member in chain.from_iterable(samples):
        if member.offset - _BLOCK != end:
            raise UserError(
                f"{index}: {member.name} does not follow the member before it: the index was changed; {REPACK}"
            )
        end = member.offset + padded(member.size)
    try:
        with tar.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for member in (samples[0][0], samples[-1][-1]):
                file.seek(member.offset - _BLOCK)
                if member.offset <= size and (found := other_header(file.read(_BLOCK), member)):
                    raise UserError(
                        f"{index}: {member.name} of {member.size} bytes, but {tar.name} has {found} there: the tar is "
                        f"damaged, or the index belongs to another tar; {REPACK}"
                    )
            if size < end + 2 * _BLOCK and not cut_short:
                raise UserError(f"{tar}: {size} bytes, but its index needs {end + 2 * _BLOCK}: truncated; {COPY_AGAIN}")
            file.seek(end)
            if any(file.read(_BLOCK)):
                raise UserError(f"{index}: ends before {tar.name} does: the index belongs to another tar; {REPACK}")
    except OSError as error:
        raise unreadable(tar, error, COPY_AGAIN) from error
    return samples


def other_header(header: bytes, member: Member) -> str | None:
    """What a tar holds instead of the header of a member; None: a header of its name and size."""
    try:
        if header == member_header(member.name, member.size):
            return None
    except ValueError:
        pass  # a name or size that no tar has
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except tarfile.HeaderError as error:
        return f"no tar header ({error})"
    return None if (info.name, info.size) == (member.name, member.size) else f"{info.name}, {info.size} bytes"


def read_members(tar: Path, samples: list[list[Member]]) -> Iterator[dict[str, bytes]]:
    """The contents of every sample by extension, in order. Raises UserError when the tar is shorter than its index."""
    with tar.open("rb") as file:
        for members in samples:
            contents = {}
            for member in members:
                file.seek(member.offset)
                contents[member.extension] = file.read(member.size)
                if len(contents[member.extension]) != member.size:
                    raise UserError(
                        f"{tar}: ends inside {member.name}, from byte {member.offset}: truncated; {COPY_AGAIN}"
                    )
            yield contents


def member_header(name: str, size: int) -> bytes:
    """The tar header of a member that is named by a key and an extension.

    Ours: tarfile takes longer for three headers than libsndfile for the header of the audio; those of one extension and
    size differ in key and checksum alone.
    """
    key = name[:KEY_DIGITS].encode("ascii")
    before, behind, total = _header_parts(name[KEY_DIGITS:], size)
    return b"%b%b%06o%b" % (key, before, total + sum(key), behind)


@lru_cache(maxsize=4096)
def _header_parts(extension: str, size: int) -> tuple[bytes, bytes, int]:
    """Of a header: what is between key and checksum, what follows the checksum; sum of all but the key.

    The checksum's field counts as spaces. Source: POSIX.1-1988, ustar.
    """
    info = tarfile.TarInfo(clip_key(0) + extension)
    info.size, info.mode, info.uname, info.gname = size, 0o444, OWNER, OWNER
    header = info.tobuf(tarfile.USTAR_FORMAT)
    before, behind = header[KEY_DIGITS:148], header[154:]
    return before, behind, sum(before) + 8 * ord(" ") + sum(behind[2:])


def _index_text(lines: Sequence[str]) -> str:
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines]) + "\n"


def padded(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar, without its header."""
    return -(-size // _BLOCK) * _BLOCK
