"""What a shard holds, byte by byte, if it is as the packer wrote it: made from its part of the clips table.   N clips.

Ours: to compare a shard with these bytes takes a fifth of the time that parsing it takes, so only what differs is
parsed, to say how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

from unfused_fast.shards.shard_files import INDEX_VERSION, KEY_DIGITS, Member, clip_key, member_header

Columns = Mapping[str, Sequence[Any]]
"""(N) values of each column of the clips table."""

_MEMBERS = 3
_WORDS = 4 * _MEMBERS
"""Of a line of the index."""
_NEVER_NULL = ("clip_id", "key", "split", "label", "labels", "seconds", "source")
_QUOTED = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Expected:
    """A shard whose index is what the clips table says."""

    codec: str
    keys: list[str]
    """(N)"""
    jsons: list[bytes]
    """(N) contents of the .json members."""
    audio: list[Member]
    """(N)"""
    ends: list[int]
    """(N) where each clip ends, padding included, in bytes from the start of the tar."""

    def first_and_last(self) -> tuple[Member, Member]:
        """The members at both ends of the tar."""
        if _audio_first(self.codec):
            size = len(self.jsons[-1])
            return self.audio[0], Member("json", self.ends[-1] - _padded(size), size, f"{self.keys[-1]}.json")
        return Member("index", BLOCKSIZE, KEY_DIGITS, f"{self.keys[0]}.index"), self.audio[-1]

    def around_audio(self) -> Iterator[tuple[bytes, bytes]]:
        """Of each clip, the bytes before the content of its audio member, and those behind it, padding included."""
        index_header, json_header, audio_header = map(_Header, ("index", "json", self.codec))
        index_padding, padding = bytes(BLOCKSIZE - KEY_DIGITS), [bytes(count) for count in range(BLOCKSIZE)]
        audio_first = _audio_first(self.codec)
        for name, text, audio in zip(self.keys, self.jsons, self.audio, strict=True):
            key = name.encode()
            digits = sum(key)
            described = b"".join(
                (
                    index_header.of(key, digits, KEY_DIGITS),
                    key,
                    index_padding,
                    json_header.of(key, digits, len(text)),
                    text,
                    padding[-len(text) % BLOCKSIZE],
                )
            )
            header, behind = audio_header.of(key, digits, audio.size), padding[-audio.size % BLOCKSIZE]
            yield (header, behind + described) if audio_first else (described + header, behind)


def expected_shard(
    index: Path, codec: str, split: str, rows: Columns, label_names: Sequence[str]
) -> Expected | None:
    """What the tar of an index holds if it is whole; None where index or rows are not as the packer writes them.

    The sizes of the audio members are those of the index, the rest of it is compared.
    """
    keys = list(rows["key"])
    if not keys or any(None in rows[name] for name in _NEVER_NULL) or set(rows["split"]) != {split}:
        return None
    if keys != list(map(clip_key, rows["clip_id"])):
        return None
    try:
        jsons = _jsons(rows, label_names)
        text = index.read_bytes().decode("ascii")
        sizes = list(map(int, text.split()[(4 if _audio_first(codec) else _WORDS) :: _WORDS]))
    except (OSError, ValueError, LookupError):
        return None
    if len(sizes) != len(keys) or min(sizes) < 0:
        return None
    lines, audio, ends, free = [f"{INDEX_VERSION} {len(keys)}\n"], [], [], 0
    for key, described, size in zip(keys, jsons, sizes, strict=True):
        name, length, first = f"{key}.{codec}", len(described), free + BLOCKSIZE
        if _audio_first(codec):
            audio.append(Member(codec, first, size, name))
            second = first + _padded(size) + BLOCKSIZE
            third = second + 2 * BLOCKSIZE
            lines.append(
                f"{codec} {first} {size} {name} index {second} {KEY_DIGITS} {key}.index json {third} {length} {key}.json\n"
            )
            free = third + _padded(length)
        else:
            second = first + 2 * BLOCKSIZE
            third = second + _padded(length) + BLOCKSIZE
            lines.append(
                f"index {first} {KEY_DIGITS} {key}.index json {second} {length} {key}.json {codec} {third} {size} {name}\n"
            )
            audio.append(Member(codec, third, size, name))
            free = third + _padded(size)
        ends.append(free)
    return Expected(codec, keys, jsons, audio, ends) if "".join(lines) == text else None


def _jsons(rows: Columns, label_names: Sequence[str]) -> list[bytes]:
    """What shard_files.clip_json gives for each row. Raises LookupError or ValueError: a label that has no name."""

    @cache
    def labelled(label: int, labels: tuple[int, ...]) -> str:
        if min(labels, default=0) < 0:
            raise ValueError(labels)
        names = json.dumps([label_names[number] for number in labels], ensure_ascii=False)
        return f'"label": {label}, "label_names": {names}, "labels": {list(labels)}'

    quoted, number = cache(_QUOTED), cache(repr)
    fields = (rows[name] for name in ("clip_id", "fold", "group", "label", "labels", "seconds", "source", "split"))
    return [
        f'{{"clip_id": {clip_id:{KEY_DIGITS}d}, "fold": {quoted(fold)}, "group": {quoted(group)}, '
        f'{labelled(label, tuple(labels))}, "seconds": {number(seconds)}, "source": {_QUOTED(source)}, '
        f'"split": {quoted(split)}}}'.encode()
        for clip_id, fold, group, label, labels, seconds, source, split in zip(*fields, strict=True)
    ]


class _Header:
    """Tar headers of one kind of member, which differ in key, size and checksum. Ours: tarfile takes 10 us for one."""

    def __init__(self, extension: str) -> None:
        self._extension = extension
        self._known: dict[int, tuple[bytes, int, bytes]] = {}

    def of(self, key: bytes, digits: int, size: int) -> bytes:
        """As shard_files.member_header. digits: the sum of the bytes of `key`."""
        if size not in self._known:
            header = member_header(f"{clip_key(0)}.{self._extension}", size)
            rest = sum(header) - sum(header[:KEY_DIGITS]) - sum(header[148:156]) + sum(b" " * 8)
            self._known[size] = header[KEY_DIGITS:148], rest, header[154:]
        before, rest, behind = self._known[size]
        return b"%b%b%06o%b" % (key, before, rest + digits, behind)


def _audio_first(codec: str) -> bool:
    """Members lie in order of extension."""
    return codec < "index"


def _padded(size: int) -> int:
    return -(-size // BLOCKSIZE) * BLOCKSIZE
