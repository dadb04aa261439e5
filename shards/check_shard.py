"""One shard from its first byte to its last, read once: headers, members, table, audio. What a worker of check does."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from unfused_fast.errors import UserError
from unfused_fast.shards import measures
from unfused_fast.shards.clip_codec import decode_clip
from unfused_fast.shards.findings import Example, Finding, Kind, Tally, finding
from unfused_fast.shards.reasons import Rejected
from unfused_fast.shards.shard_files import IN_JSON, Member, check_index, index_path
from unfused_fast.shards.table import clips_digest, read_clips
from unfused_fast.shards.workers import At, Bad

BLOCK_BYTES = 1 << 20
"""Bytes of a read. Ours: it is hashed while it is still in the processor's cache."""

Damage = tuple[Kind, int, str]
"""Kind, offset in the tar, text."""

_HEADER = tarfile.BLOCKSIZE
_DECODER = json.JSONDecoder()


@dataclass
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

    def answer(self, bad: Bad, at: At) -> ShardReport:
        """Compares every byte of the shard with its index and its part of the table, and measures its audio.

        Of a clip that is damaged in several ways the first is named.

        Args:
            bad: clips, by their number in the shard, at which a process died or hung before.
            at: called with the number of each clip before its audio is touched.
        """
        tar, index = self.tar, index_path(self.tar)
        try:
            samples = check_index(tar, index)
        except UserError as error:
            text = str(error)
            if text.startswith(f"{tar}:"):
                size = tar.stat().st_size if tar.is_file() else None
                return ShardReport(broken=Finding(Kind.TAR, text, str(tar), tar.name, size))
            return ShardReport(broken=Finding(Kind.INDEX, text, str(index), tar.name))
        rows = _rows(self.rows)
        report = ShardReport(len(samples))
        if len(rows) != len(samples):
            text = f"{len(samples)} clips, but the clips table has {len(rows)} left from its first one on"
            report.problems.add(Kind.COUNT, Example(text, tar=tar))
        headers = _Headers()
        try:
            for number, (row, members, buffer, base) in enumerate(_clips(tar, samples, rows)):
                at(number)
                self._examine(bad.get(number), row, members, buffer, base, headers, report)
        except (OSError, EOFError) as error:
            said = f"cannot be read to its end ({getattr(error, 'strerror', None) or error})"
            report.broken = finding(Kind.TAR, tar, said)
        return report

    def _examine(
        self,
        rejected: Rejected | None,
        row: dict[str, Any],
        members: list[Member],
        buffer: bytearray,
        base: int,
        headers: _Headers,
        report: ShardReport,
    ) -> None:
        """Notes in `report` what is wrong with one clip, which lies in `buffer`: the tar from byte `base` on."""
        damage = _member_damage(buffer, base, members, row, headers, self) or _json_damage(
            buffer, base, members, row, self
        )
        audio = next((member for member in members if member.extension == self.codec), members[0])
        start = audio.offset - base
        if damage is None and rejected is not None:
            damage = Kind.CRASHED, audio.offset, f"{audio.name}: {rejected}"
        if damage is None:
            try:
                pcm = decode_clip(memoryview(buffer)[start : start + audio.size])
            except ValueError as error:
                damage = Kind.AUDIO, audio.offset, f"{audio.name} cannot be decoded: {error}"
            else:
                if (
                    len(pcm) == row["samples"]
                    and hashlib.sha256(pcm.astype("<i2", copy=False).data).hexdigest() == row["sha256"]
                ):
                    self._listen(pcm, row, audio, report)
                    return
                damage = Kind.SAMPLES, audio.offset, f"the samples of {audio.name} are not those packed (sha256)"
        kind, offset, text = damage
        report.problems.add(kind, Example(f"byte {offset}: {text}", row["clip_id"], row["source"], self.tar, offset))

    def _listen(self, pcm: measures.Pcm, row: dict[str, Any], audio: Member, report: ShardReport) -> None:
        """Notes what the recording suffers from."""

        def note(kind: Kind, text: str) -> None:
            report.warnings.add(kind, Example(text, row["clip_id"], row["source"], self.tar, audio.offset))

        lowest, highest = int(np.minimum.reduce(pcm)), int(np.maximum.reduce(pcm))
        if measures.is_quiet(lowest, highest):
            note(Kind.QUIET, f"peak {max(highest, -lowest)} of 32768")
        elif measures.is_clipped(pcm, lowest, highest):
            note(Kind.CLIPPED, "")
        if row["clip_id"] % self.spectrum_every == 0:
            report.spectra += 1
            if (offset := measures.dc_offset(pcm)) is not None:
                note(Kind.DC_OFFSET, f"{100 * offset:+.1f} %")
            if (rate_hz := measures.narrow_band_hz(pcm)) is not None:
                note(Kind.NARROW_BAND, f"nothing above {rate_hz // 2} Hz")


@dataclass(frozen=True, slots=True)
class DigestTask:
    """The digest of the clips table, which takes as long as a shard and is shared out like one."""

    directory: Path
    label_names: tuple[str, ...]

    def answer(self, bad: Bad, at: At) -> str:
        """As table.clips_digest."""
        return clips_digest(read_clips(self.directory), self.label_names)


def _rows(stream: bytes) -> list[dict[str, Any]]:
    table = pa.ipc.open_stream(stream).read_all()
    names = table.schema.names
    columns = [table[name].to_pylist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _clips(
    tar: Path, samples: list[list[Member]], rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[Member], bytearray, int]]:
    """(row, members, bytes of the tar around them, where these bytes begin) of each clip that has a row."""
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
            _fill(file, memoryview(buffer)[: ends[stop - 1] - base], base)
            for row, members in zip(rows[number:stop], samples[number:stop], strict=False):
                yield row, members, buffer, base
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


def _member_damage(
    buffer: bytearray, base: int, members: list[Member], row: dict[str, Any], headers: _Headers, task: ShardTask
) -> Damage | None:
    """What is wrong with a clip's members, their contents apart."""
    for member in members:
        start = member.offset - base
        end, padding = start + member.size, -member.size % _HEADER
        if problem := headers.problem(buffer[start - _HEADER : start], member):
            text = f"{problem}, where the index has {member.name}, {member.size} bytes"
            return Kind.TAR, member.offset - _HEADER, text
        if buffer.count(0, end, end + padding) != padding:
            return Kind.TAR, member.offset + member.size, f"no zeros as padding after {member.name}"
    first, key = members[0], row["key"]
    if any(member.name != f"{key}.{member.extension}" for member in members):
        return Kind.KEY, first.offset, f"{first.name}, where the clips table has {key}"
    if {member.extension for member in members} != {"json", "index", task.codec} or len(members) != 3:
        return Kind.KEY, first.offset, f"members {', '.join(member.name for member in members)}"
    if row["split"] != task.split:
        return Kind.SPLIT, first.offset, f"{key} is of split {row['split']} in the clips table"
    return None


def _json_damage(
    buffer: bytearray, base: int, members: list[Member], row: dict[str, Any], task: ShardTask
) -> Damage | None:
    """What is wrong with the contents of a clip's .index and .json."""
    for member in members:
        if member.extension == task.codec:
            continue
        content = buffer[member.offset - base : member.offset - base + member.size]
        if member.extension == "index":
            if content != row["key"].encode():
                return Kind.KEY, member.offset, f"the content of {member.name} is not {row['key']}"
        elif problem := _json_problem(content, row, task.label_names):
            return Kind.JSON, member.offset, f"{member.name} {problem}"
    return None


def _json_problem(content: bytearray, row: dict[str, Any], label_names: tuple[str, ...]) -> str | None:
    try:
        described = _DECODER.decode(content.decode())
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


class _Headers:
    """Compares tar headers: the first of an extension is parsed, later ones are expected to differ in name and size.

    Ours: parsing every header with tarfile takes longer than hashing a second of audio.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[int, bytes, bytes, bytes]] = {}

    def problem(self, header: bytearray, member: Member) -> str | None:
        """What is there instead of the header of `member`; None: it is there."""
        kind = member.extension, len(member.name)
        if kind in self._known:
            base, between, after_size, rest = self._known[kind]
            name, size = member.name.encode(), b"%011o" % member.size
            checksum = base + sum(name) + sum(size)
            if header == b"%b%b%b%b%06o\0 %b" % (name, between, size, after_size, checksum, rest):
                return None
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError as error:
            return f"no tar header ({error})"
        if (info.name, info.size) != (member.name, member.size):
            return f"{info.name}, {info.size} bytes"
        fixed = bytes(header[len(member.name) : 124]), bytes(header[135:148]), bytes(header[156:])
        self._known[kind] = (sum(map(sum, fixed)) + 8 * ord(" "), *fixed)
        return None
