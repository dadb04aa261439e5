"""One shard from its first byte to its last, read once: headers, members, table, audio. What a worker of check does."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from unfused_fast.errors import UserError
from unfused_fast.shards import measures
from unfused_fast.shards.clip_codec import decode_clip
from unfused_fast.shards.findings import Example, Finding, Kind, Tally, finding
from unfused_fast.shards.shard_files import Member, check_index, index_path
from unfused_fast.shards.table import IN_JSON

BLOCK_BYTES = 1 << 20
"""Bytes of a read. Ours: it is hashed while it is still in the processor's cache."""

_HEADER = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to examine."""

    tar: Path
    split: str
    codec: str
    label_names: tuple[str, ...]
    rows: bytes
    """Its part of the clips table, as an Arrow stream."""
    spectrum_every: int
    """Clips whose id it divides are looked at for DC offset and band as well."""


@dataclass(frozen=True)
class ShardReport:
    """What was found in a shard."""

    clips: int = 0
    """In its index."""
    broken: Finding | None = None
    """Why the shard could not be read to its end."""
    problems: Tally = field(default_factory=Tally)
    warnings: Tally = field(default_factory=Tally)
    spectra: int = 0
    """Clips whose DC offset and band were looked at."""


def examine_shards(tasks: Sequence[ShardTask]) -> list[ShardReport]:
    """A worker's task: `examine_shard` for each."""
    return [examine_shard(task) for task in tasks]


def examine_shard(task: ShardTask) -> ShardReport:
    """Compares every byte of a shard with its index and its part of the table, and measures its audio.

    Of a clip that is damaged in several ways the first is named.
    """
    tar, index = task.tar, index_path(task.tar)
    try:
        samples = check_index(tar, index)
    except UserError as error:
        text = str(error)
        if text.startswith(f"{tar}:"):
            size = tar.stat().st_size if tar.is_file() else None
            return ShardReport(broken=Finding(Kind.TAR, text, str(tar), tar.name, size))
        return ShardReport(broken=Finding(Kind.INDEX, text, str(index), tar.name))
    rows = _rows(task.rows)
    report = ShardReport(len(samples))
    spectra = 0
    if len(rows) != len(samples):
        text = f"{len(samples)} clips, but the clips table has {len(rows)} left from its first one on"
        report.problems.add(Kind.COUNT, Example(text, tar=tar))
    headers = _Headers()
    try:
        for block, base, members, row in _clips(tar, samples, rows):
            found = _damage(block, base, members, row, headers, task)
            if isinstance(found, tuple):
                kind, offset, text = found
                report.problems.add(kind, Example(text, row["clip_id"], row["source"], tar, offset))
                continue
            looked = row["clip_id"] % task.spectrum_every == 0
            spectra += looked
            for kind, text in _measured(found, looked):
                report.warnings.add(kind, Example(text, row["clip_id"], row["source"], tar, members[0].offset))
    except (OSError, EOFError) as error:
        said = f"cannot be read to its end ({getattr(error, 'strerror', None) or error})"
        return ShardReport(len(samples), finding(Kind.TAR, tar, said), report.problems, report.warnings, spectra)
    return ShardReport(len(samples), None, report.problems, report.warnings, spectra)


def _rows(stream: bytes) -> list[dict[str, Any]]:
    table = pa.ipc.open_stream(stream).read_all()
    names = table.schema.names
    columns = [table[name].to_pylist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _clips(
    tar: Path, samples: list[list[Member]], rows: list[dict[str, Any]]
) -> Iterator[tuple[memoryview, int, list[Member], dict[str, Any]]]:
    """(block, offset of the block in the tar, members, row) of each clip that has a row, read block by block."""
    ends = [members[-1].offset + -(-members[-1].size // _HEADER) * _HEADER for members in samples]
    buffer = bytearray()
    with tar.open("rb", buffering=0) as file:
        number = base = 0
        while number < len(samples):
            stop = number + 1
            while stop < len(samples) and ends[stop] - base <= BLOCK_BYTES:
                stop += 1
            if len(buffer) < ends[stop - 1] - base:
                buffer = bytearray(ends[stop - 1] - base)
            block = memoryview(buffer)[: ends[stop - 1] - base]
            _fill(file, block, base)
            for members, row in zip(samples[number:stop], rows[number:stop], strict=False):
                yield block, base, members, row
            number, base = stop, ends[stop - 1]
        while rest := file.read(BLOCK_BYTES):
            if any(rest):
                raise EOFError(f"something follows its last member, after byte {base}")


def _fill(file: IO[bytes], block: memoryview, base: int) -> None:
    filled = 0
    while filled < len(block):
        got = file.readinto(block[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"it ends at byte {base + filled}")
        filled += got


def _damage(
    block: memoryview, base: int, members: list[Member], row: dict[str, Any], headers: _Headers, task: ShardTask
) -> tuple[Kind, int, str] | measures.Pcm:
    """What is wrong with a clip: kind, offset in the tar, text; or its samples, which are those that were packed."""
    contents = {}
    for member in members:
        start = member.offset - base
        end = start + member.size
        if problem := headers.problem(bytes(block[start - _HEADER : start]), member):
            text = f"byte {member.offset - _HEADER}: {problem}, where the index has {member.name}, {member.size} bytes"
            return Kind.TAR, member.offset - _HEADER, text
        if any(block[end : end + -member.size % _HEADER]):
            return Kind.TAR, member.offset + member.size, f"byte {member.offset + member.size}: no zeros as padding"
        contents[member.extension] = block[start:end]
    first, key, offset = members[0].name, row["key"], members[0].offset
    if any(member.name != f"{key}.{member.extension}" for member in members):
        return Kind.KEY, offset, f"byte {offset}: {first}, where the clips table has {key}"
    if contents.keys() != {task.codec, "json", "index"}:
        return Kind.KEY, offset, f"byte {offset}: {key} has members {', '.join(contents)}"
    if row["split"] != task.split:
        return Kind.SPLIT, offset, f"byte {offset}: {key} is of split {row['split']} in the clips table"
    if contents["index"] != key.encode():
        return Kind.KEY, offset, f"byte {offset}: the content of {first} is not {key}"
    places = {member.extension: member.offset for member in members}
    if problem := _json_problem(bytes(contents["json"]), row, task.label_names):
        return Kind.JSON, places["json"], f"byte {places['json']}: {key}.json {problem}"
    audio = places[task.codec]
    try:
        pcm = decode_clip(contents[task.codec])
    except ValueError as error:
        return Kind.AUDIO, audio, f"byte {audio}: {key}.{task.codec} cannot be decoded: {error}"
    if len(pcm) != row["samples"] or hashlib.sha256(pcm.astype("<i2", copy=False)).hexdigest() != row["sha256"]:
        return Kind.SAMPLES, audio, f"byte {audio}: the samples of {key}.{task.codec} are not those packed (sha256)"
    return pcm


def _json_problem(text: bytes, row: dict[str, Any], label_names: tuple[str, ...]) -> str | None:
    try:
        described = json.loads(text)
    except ValueError:
        return "is no JSON"
    names = [label_names[label] for label in row["labels"] if 0 <= label < len(label_names)]
    wanted = {name: row[name] for name in ("clip_id", *IN_JSON)}
    wanted["label_names"] = names
    if described == wanted:
        return None
    if not isinstance(described, dict):
        return f"holds {described!r:.60}"
    differing = sorted(
        name
        for name in described.keys() | wanted.keys()
        if name not in wanted or name not in described or described[name] != wanted[name]
    )
    return "says " + ", ".join(
        f"{name} {described.get(name)!r}, but the clips table {wanted.get(name)!r}" for name in differing
    )


def _measured(pcm: measures.Pcm, spectrum: bool) -> Iterator[tuple[Kind, str]]:
    lowest, highest = int(pcm.min()), int(pcm.max())
    if measures.is_quiet(lowest, highest):
        yield Kind.QUIET, f"peak {max(highest, -lowest)} of 32768"
    elif measures.is_clipped(pcm, lowest, highest):
        yield Kind.CLIPPED, ""
    if spectrum:
        if (offset := measures.dc_offset(pcm)) is not None:
            yield Kind.DC_OFFSET, f"{100 * offset:+.1f} %"
        if (rate_hz := measures.narrow_band_hz(pcm)) is not None:
            yield Kind.NARROW_BAND, f"nothing above {rate_hz // 2} Hz"


class _Headers:
    """Compares tar headers: the first of an extension is parsed, later ones are expected to differ in name and size.

    Ours: parsing every header with tarfile takes longer than hashing a second of audio.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, bytes, bytes, bytes]] = {}

    def problem(self, header: bytes, member: Member) -> str | None:
        """What is there instead of the header of `member`; None: it is there."""
        if member.extension in self._known:
            base, before_size, after_size, rest = self._known[member.extension]
            name, size = member.name.encode(), b"%011o" % member.size
            checksum = b"%06o\0 " % (base + sum(name) + sum(size))
            if header == name.ljust(100, b"\0") + before_size + size + after_size + checksum + rest:
                return None
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError as error:
            return f"no tar header ({error})"
        if (info.name, info.size) != (member.name, member.size):
            return f"{info.name}, {info.size} bytes"
        fixed = header[100:124], header[135:148], header[156:]
        self._known[member.extension] = (sum(map(sum, fixed)) + 8 * ord(" "), *fixed)
        return None
