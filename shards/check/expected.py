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

import numpy as np
from numpy.typing import NDArray

from unfused_fast.shards.sets.shard_files import INDEX_VERSION, KEY_DIGITS, Member, clip_key, member_header

Columns = Mapping[str, Sequence[Any]]
"""(N) values of each column of the clips table."""

_NEVER_NULL = ("clip_id", "key", "split", "label", "labels", "seconds", "source")
_WORDS = 12
"""Of a line of the index: four for each of three members."""


@dataclass(frozen=True)
class Expected:
    """A shard whose index is what the clips table says."""

    codec: str
    keys: list[str]
    """(N)"""
    jsons: list[bytes]
    """(N) contents of the .json members."""
    audio: list[tuple[int, int]]
    """(N) offset and size of each audio member."""
    ends: list[int]
    """(N) where each clip ends, padding included, in bytes from the start of the tar."""

    def first_and_last(self) -> tuple[Member, Member]:
        """The members at both ends of the tar."""
        first, last, size = self.keys[0], self.keys[-1], len(self.jsons[-1])
        if _audio_first(self.codec):
            offset = self.ends[-1] - -(-size // BLOCKSIZE) * BLOCKSIZE
            return Member(self.codec, *self.audio[0], f"{first}.{self.codec}"), Member(
                "json", offset, size, f"{last}.json"
            )
        index = Member("index", BLOCKSIZE, KEY_DIGITS, f"{first}.index")
        return index, Member(self.codec, *self.audio[-1], f"{last}.{self.codec}")

    def around_audio(self) -> Iterator[tuple[bytes, bytes]]:
        """Of each clip, the bytes before the content of its audio member, and those behind it, padding included."""
        json_headers, audio_headers = _Headers("json"), _Headers(self.codec)
        before_index, index_sum, behind_index = _Headers("index")[KEY_DIGITS]
        zeros = [bytes(count) for count in range(BLOCKSIZE)]
        index_padding, audio_first = zeros[-KEY_DIGITS % BLOCKSIZE], _audio_first(self.codec)
        for name, text, (_, size) in zip(self.keys, self.jsons, self.audio, strict=True):
            key, padding = name.encode(), zeros[-size % BLOCKSIZE]
            digits = sum(key)
            before_json, json_sum, behind_json = json_headers[len(text)]
            before_audio, audio_sum, behind_audio = audio_headers[size]
            described = b"%b%b%06o%b%b%b%b%b%06o%b%b%b" % (
                *(key, before_index, index_sum + digits, behind_index, key, index_padding),
                *(key, before_json, json_sum + digits, behind_json, text, zeros[-len(text) % BLOCKSIZE]),
            )
            header = b"%b%b%06o%b" % (key, before_audio, audio_sum + digits, behind_audio)
            yield (header, padding + described) if audio_first else (described + header, padding)


def expected_shard(index: Path, codec: str, split: str, rows: Columns, label_names: Sequence[str]) -> Expected | None:
    """What the tar of an index holds if it is whole; None where index or rows are not as the packer writes them.

    The sizes of the audio members are those of the index, the rest of it is compared.
    """
    keys, audio_first = list(rows["key"]), _audio_first(codec)
    if not keys or any(None in rows[name] for name in _NEVER_NULL) or set(rows["split"]) != {split}:
        return None
    try:
        text = index.read_bytes().decode("ascii")
        sizes = np.array(text.split()[(4 if audio_first else _WORDS) :: _WORDS], np.int64)
        jsons = _jsons(rows, label_names)
    except (OSError, ValueError, LookupError, OverflowError):
        return None
    if len(sizes) != len(keys) or sizes.min() < 0 or keys != list(map(clip_key, rows["clip_id"])):
        return None
    lengths = np.array(list(map(len, jsons)), np.int64)
    described = 3 * BLOCKSIZE + _padded(lengths)
    ends = np.cumsum(described + BLOCKSIZE + _padded(sizes))
    audio = ends - _padded(sizes) - (described if audio_first else 0)
    first = ends - described + BLOCKSIZE if audio_first else audio - described
    places = zip(keys, first.tolist(), lengths.tolist(), audio.tolist(), sizes.tolist(), strict=True)
    if audio_first:
        lines = [
            f"{codec} {offset} {size} {key}.{codec} index {start} {KEY_DIGITS} {key}.index "
            f"json {start + 2 * BLOCKSIZE} {length} {key}.json\n"
            for key, start, length, offset, size in places
        ]
    else:
        lines = [
            f"index {start} {KEY_DIGITS} {key}.index json {start + 2 * BLOCKSIZE} {length} {key}.json "
            f"{codec} {offset} {size} {key}.{codec}\n"
            for key, start, length, offset, size in places
        ]
    if text != f"{INDEX_VERSION} {len(keys)}\n" + "".join(lines):
        return None
    return Expected(codec, keys, jsons, list(zip(audio.tolist(), sizes.tolist(), strict=True)), ends.tolist())


def _jsons(rows: Columns, label_names: Sequence[str]) -> list[bytes]:
    """What shard_files.clip_json gives for each row. Raises LookupError or ValueError: a label that has no name."""

    @cache
    def labelled(label: int, labels: tuple[int, ...]) -> str:
        if min(labels, default=0) < 0:
            raise ValueError(labels)
        names = json.dumps([label_names[number] for number in labels], ensure_ascii=False)
        return f'"label": {label}, "label_names": {names}, "labels": {list(labels)}'

    named = map(labelled, rows["label"], map(tuple, rows["labels"]))
    columns = (_as_json(rows[name]) for name in ("fold", "group", "seconds", "source", "split"))
    return [
        f'{{"clip_id": {clip_id:{KEY_DIGITS}d}, "fold": {fold}, "group": {group}, {labels}, "seconds": {seconds}, '
        f'"source": {source}, "split": {split}}}'.encode()
        for clip_id, labels, fold, group, seconds, source, split in zip(rows["clip_id"], named, *columns, strict=True)
    ]


def _as_json(values: Sequence[Any]) -> list[str]:
    """The JSON of each value. Ours: one call for all, cut at line feeds, which JSON has as an escape only."""
    return json.dumps(list(values), ensure_ascii=False, separators=("\n", ":"))[1:-1].split("\n")


class _Headers(dict[int, tuple[bytes, int, bytes]]):
    """Size of a member -> its tar header after the key up to the checksum, the sum of all but the key, what is behind.

    Ours: tarfile takes 10 us for a header, and those of one extension and size differ in key and checksum only.
    """

    def __init__(self, extension: str) -> None:
        super().__init__()
        self._extension = extension

    def __missing__(self, size: int) -> tuple[bytes, int, bytes]:
        header = member_header(f"{clip_key(0)}.{self._extension}", size)
        total = sum(header) - sum(header[:KEY_DIGITS]) - sum(header[148:156]) + sum(b" " * 8)
        self[size] = header[KEY_DIGITS:148], total, header[154:]
        return self[size]


def _audio_first(codec: str) -> bool:
    """Members lie in order of extension."""
    return codec < "index"


def _padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-sizes // BLOCKSIZE) * BLOCKSIZE
