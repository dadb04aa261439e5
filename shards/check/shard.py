"""One shard, read once from its first byte to its last: headers, members, table, audio. One job of check."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
import pyarrow as pa

from unfused_fast.console import counted
from unfused_fast.errors import UserError, cause
from unfused_fast.shards.audio import measures
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.check.findings import Example, Examples, Finding, Kind, finding
from unfused_fast.shards.packing.workers import At, Bad
from unfused_fast.shards.sets.shard_files import Member, check_index, clip_json, index_path, other_header, padded

READ_BYTES = 1 << 17

ZEROS = bytes(BLOCKSIZE)

Row = Mapping[str, Any]
Damage = tuple[Kind, int, str]
"""Kind, offset in the tar, text."""


@dataclass
class ShardReport:
    """What was found in a shard."""

    tar: Path
    clips: int = 0
    """In its index."""
    broken: Finding | None = None
    """Why the shard could not be read to its end."""
    problems: Examples = field(default_factory=dict)
    warnings: Examples = field(default_factory=dict)
    decoded: int = 0
    """Clips that were examined for silence."""
    spectra: int = 0
    """Clips that were examined for DC offset and band."""


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
    """Clips whose id is a multiple of it are examined for DC offset and band as well."""

    def answer(self, bad: Bad, at: At) -> ShardReport:
        """Compares the shard with its index and its part of the table, and measures its audio.

        Of a clip that is damaged in several ways the first damage is named.

        Args:
            bad: clips, by their number in the shard, at which a process died or hung before.
            at: called with the number of each clip before its audio is touched.
        """
        table, index = pa.ipc.open_stream(self.rows).read_all(), index_path(self.tar)
        columns = [column.to_pylist() for column in table.columns]
        rows = [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
        try:
            samples = check_index(self.tar, index)
        except UserError as error:
            if str(error).startswith(f"{self.tar}:"):
                size = self.tar.stat().st_size if self.tar.is_file() else None
                broken = Finding(Kind.TAR, str(error), str(self.tar), self.tar.name, size)
            else:
                broken = Finding(Kind.INDEX, str(error), str(index), self.tar.name)
            return ShardReport(self.tar, broken=broken)
        report = ShardReport(self.tar, len(samples))
        if len(rows) != len(samples):
            text = f"{counted(len(samples), 'clip')}, but the clips table has only {len(rows)} from its first one on"
            report.problems[Kind.COUNT] = [Example(text, tar=self.tar)]
        try:
            for number, (members, clip) in enumerate(_clips(self.tar, samples)):
                if number >= len(rows):
                    continue
                row, audio = rows[number], members[-1] if self.codec == "wav" else members[0]
                at(number)
                damage = self._member_damage(clip, members, row)
                if damage is None and number in bad:
                    damage = Kind.CRASHED, audio.offset, f"{audio.name}: {bad[number]}"
                if damage is None:
                    start = audio.offset - members[0].offset + BLOCKSIZE
                    damage = self._audio_damage(memoryview(clip)[start : start + audio.size], audio, row, report)
                if damage is not None:
                    kind, place, text = damage
                    example = Example(f"byte {place}: {text}", row["clip_id"], row["source"], self.tar, place)
                    report.problems.setdefault(kind, []).append(example)
        except (OSError, EOFError) as error:
            report.broken = finding(Kind.TAR, self.tar, f"cannot be read to its end ({cause(error)})")
        return report

    def _member_damage(self, clip: bytes, members: list[Member], row: Row) -> Damage | None:
        """What is wrong with a clip apart from its audio."""
        first, key = members[0], row["key"]
        if [member.name for member in members] != [f"{key}.{name}" for name in sorted((self.codec, "index", "json"))]:
            summary = ", ".join(member.name for member in members)
            return Kind.KEY, first.offset, f"members {summary}, but the clips table has {key}"
        if row["split"] != self.split:
            return Kind.SPLIT, first.offset, f"{key} is in split {row['split']} in the clips table"
        described = b""
        with contextlib.suppress(LookupError, TypeError):  # a label without a name, no source: the table is damaged
            described = clip_json(row, self.label_names)
        contents = {"index": (Kind.KEY, key.encode()), "json": (Kind.JSON, described)}
        for member in members:
            extension, offset, size, name = member
            start = offset - first.offset + BLOCKSIZE
            if problem := other_header(clip[start - BLOCKSIZE : start], member):
                return Kind.TAR, offset - BLOCKSIZE, f"{problem}, but the index has {name}, {size} bytes"
            if not clip.startswith(ZEROS[: -size % BLOCKSIZE], start + size):
                return Kind.TAR, offset + size, f"no zero padding after {name}"
            kind, wanted = contents.get(extension, (Kind.AUDIO, None))
            if wanted is not None and clip[start : start + size] != wanted:
                return kind, offset, f"the content of {name} does not match the clips table"
        return None

    def _audio_damage(self, content: memoryview, audio: Member, row: Row, report: ShardReport) -> Damage | None:
        """What is wrong with a clip's audio; where nothing is, it is measured, of FLAC a sample of the clips."""
        whole = hashlib.sha256(content).hexdigest() == row["stored_sha256"]
        spectrum = row["clip_id"] % self.spectrum_every == 0
        if whole and not spectrum and self.codec == "flac":
            return None
        try:
            pcm = decode_clip(content)
        except ValueError as error:
            return Kind.AUDIO, audio.offset, f"{audio.name} cannot be decoded: {error}"
        if not whole or spectrum:
            same = hashlib.sha256(pcm.astype("<i2", copy=False).data).hexdigest() == row["sha256"]
            if not whole or not same:
                summary = f"the samples of {audio.name} differ from those packed"
                if same:
                    summary = f"the bytes of {audio.name} differ from those packed, but its samples are the same"
                return Kind.SAMPLES, audio.offset, f"{summary} (sha256)"
        if len(pcm) != row["samples"]:
            text = f"{audio.name} has {len(pcm)} samples, but the clips table has {row['samples']}"
            return Kind.SAMPLES, audio.offset, text
        report.decoded += 1
        report.spectra += spectrum
        for kind, text in _faults(pcm, spectrum):
            example = Example(text, row["clip_id"], row["source"], self.tar, audio.offset)
            report.warnings.setdefault(kind, []).append(example)
        return None


def _clips(tar: Path, samples: list[list[Member]]) -> Iterator[tuple[list[Member], bytes]]:
    """The members of each clip, and the bytes from its first header to its last padding; then zeros must follow."""
    place = 0
    with tar.open("rb", buffering=READ_BYTES) as file:
        for members in samples:
            end = members[-1].offset + padded(members[-1].size)
            clip = file.read(end - place)
            if len(clip) < end - place:
                raise EOFError(f"it ends at byte {place + len(clip)}")
            yield members, clip
            place = end
        while rest := file.read(READ_BYTES):
            if any(rest):
                raise EOFError(f"data follows its last member, after byte {place}")


def _faults(pcm: measures.Pcm, spectrum: bool) -> Iterator[tuple[Kind, str]]:
    """Faults of a recording. spectrum: DC offset and band are examined as well."""
    lowest, highest = int(np.minimum.reduce(pcm)), int(np.maximum.reduce(pcm))
    if measures.is_quiet(lowest, highest):
        yield Kind.QUIET, f"peak {max(highest, -lowest)} of 32768"
    if spectrum:
        if (offset := measures.dc_offset(pcm)) is not None:
            yield Kind.DC_OFFSET, f"{100 * offset:+.1f} %"
        if (rate_hz := measures.narrow_band_hz(pcm)) is not None:
            yield Kind.NARROW_BAND, f"nothing above {rate_hz // 2} Hz"
