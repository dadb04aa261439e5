"""One shard from its first byte to its last, read once: headers, members, table, audio. What a worker of check does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, repeat
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import IO

import numpy as np
import pyarrow as pa

from unfused_fast.errors import UserError
from unfused_fast.shards.audio import measures
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.check.damage import Damage, json_damage, member_damage
from unfused_fast.shards.check.expected import Columns, expected_shard
from unfused_fast.shards.check.findings import Example, Finding, Kind, Tally, finding
from unfused_fast.shards.packing.workers import At, Bad
from unfused_fast.shards.sets.shard_files import Member, check_ends, check_index, index_path
from unfused_fast.shards.sets.table import clips_digest, read_clips

BLOCK_BYTES = 1 << 20
"""Bytes of a read. Ours: it is hashed while it is still in the processor's cache."""
READ_AHEAD_BYTES = 4 << 20

_LITTLE_ENDIAN = np.dtype("<i2")


@dataclass
class ShardReport:
    """What was found in a shard."""

    clips: int = 0
    """In its index."""
    broken: Finding | None = None
    """Why the shard could not be read to its end."""
    problems: Tally = field(default_factory=Tally)
    warnings: Tally = field(default_factory=Tally)
    listened: int = 0
    """Clips that were looked at for silence."""
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
        table = pa.ipc.open_stream(self.rows).read_all()
        rows = {name: table[name].to_pylist() for name in table.schema.names}
        try:
            layout = self._layout(rows)
        except UserError as error:
            text = str(error)
            if text.startswith(f"{self.tar}:"):
                size = self.tar.stat().st_size if self.tar.is_file() else None
                return ShardReport(broken=Finding(Kind.TAR, text, str(self.tar), self.tar.name, size))
            return ShardReport(broken=Finding(Kind.INDEX, text, str(index_path(self.tar)), self.tar.name))
        report = ShardReport(len(layout.audio))
        if table.num_rows != report.clips:
            text = f"{report.clips} clips, but the clips table has {table.num_rows} left from its first one on"
            report.problems.add(Kind.COUNT, Example(text, tar=self.tar))
        clips = zip(_clips(self.tar, layout.ends), layout.audio, layout.around_audio, count(), strict=False)
        try:
            for (buffer, base), (offset, size), around, number in clips:
                if number >= table.num_rows:
                    continue
                at(number)
                damage, start = None, offset - base
                if around is None or not (
                    buffer.startswith(around[0], start - len(around[0])) and buffer.startswith(around[1], start + size)
                ):
                    damage = self._member_damage(buffer, base, layout, rows, number)
                if damage is None and number in bad:
                    damage = Kind.CRASHED, offset, f"{rows['key'][number]}.{self.codec}: {bad[number]}"
                if damage is None:
                    content = memoryview(buffer)[start : start + size]
                    damage = self._audio_damage(content, offset, rows, number, report)
                if damage is not None:
                    kind, place, text = damage
                    clip = rows["clip_id"][number], rows["source"][number]
                    report.problems.add(kind, Example(f"byte {place}: {text}", *clip, self.tar, place))
        except (OSError, EOFError) as error:
            said = f"cannot be read to its end ({getattr(error, 'strerror', None) or error})"
            report.broken = finding(Kind.TAR, self.tar, said)
        return report

    def _layout(self, rows: Columns) -> _Layout:
        """Where the clips lie. Raises UserError as check_index."""
        index = index_path(self.tar)
        expected = expected_shard(index, self.codec, self.split, rows, self.label_names)
        if expected is not None:
            check_ends(self.tar, index, *expected.first_and_last())
            return _Layout(expected.audio, expected.ends, expected.around_audio())
        samples = check_index(self.tar, index)
        audio = [
            next(((member.offset, member.size) for member in members if member.extension == self.codec), (BLOCKSIZE, 0))
            for members in samples
        ]
        ends = [members[-1].offset + -(-members[-1].size // BLOCKSIZE) * BLOCKSIZE for members in samples]
        return _Layout(audio, ends, repeat(None), samples)

    def _member_damage(
        self, buffer: bytearray, base: int, layout: _Layout, rows: Columns, number: int
    ) -> Damage | None:
        """What is wrong with a clip apart from its audio."""
        if layout.samples is None:
            layout.samples = check_index(self.tar, index_path(self.tar))
        members, row = layout.samples[number], {name: values[number] for name, values in rows.items()}
        return member_damage(buffer, base, members, row, self.codec, self.split) or json_damage(
            buffer, base, members, row, self.codec, self.label_names
        )

    def _audio_damage(
        self, content: memoryview, offset: int, rows: Columns, number: int, report: ShardReport
    ) -> Damage | None:
        """What is wrong with a clip's audio; where nothing is, it is listened to, of FLAC a sample of the clips."""
        whole = hashlib.sha256(content).hexdigest() == rows["stored_sha256"][number]
        spectrum = rows["clip_id"][number] % self.spectrum_every == 0
        if whole and not spectrum and self.codec == "flac":
            return None
        name = f"{rows['key'][number]}.{self.codec}"
        try:
            pcm = decode_clip(content)
        except ValueError as error:
            return Kind.AUDIO, offset, f"{name} cannot be decoded: {error}"
        if not whole or spectrum:
            digest = hashlib.sha256(pcm.astype(_LITTLE_ENDIAN, copy=False).data).hexdigest()
            same = digest == rows["sha256"][number]
            if not whole or not same:
                said = f"the samples of {name} are not those packed"
                if same:
                    said = f"the bytes of {name} are not those packed, its samples are"
                return Kind.SAMPLES, offset, f"{said} (sha256)"
        if len(pcm) != rows["samples"][number]:
            return Kind.SAMPLES, offset, f"{name} has {len(pcm)} samples, the clips table {rows['samples'][number]}"
        report.listened += 1
        report.spectra += spectrum
        for kind, text in _faults(pcm, spectrum):
            example = Example(text, rows["clip_id"][number], rows["source"][number], self.tar, offset)
            report.warnings.add(kind, example)
        return None


@dataclass(frozen=True, slots=True)
class DigestTask:
    """The digest of the clips table, which takes as long as a shard and is shared out like one."""

    directory: Path
    label_names: tuple[str, ...]

    def answer(self, bad: Bad, at: At) -> str:
        """As table.clips_digest, where nothing can be left out.

        Args:
            at: called before the table is read and with the number of each batch of it, so that a long table is not
                taken for a process that hangs.
        """
        at(0)
        return clips_digest(read_clips(self.directory), self.label_names, at)


@dataclass
class _Layout:
    """Where the clips of a shard lie, and what should lie around their audio."""

    audio: list[tuple[int, int]]
    """Offset and size of each audio member."""
    ends: list[int]
    """Of each clip, padding included."""
    around_audio: Iterable[tuple[bytes, bytes] | None]
    """See Expected; None: not known, the clip is to be parsed."""
    samples: list[list[Member]] | None = None
    """What the index says, once it has been parsed."""


def _clips(tar: Path, ends: list[int]) -> Iterator[tuple[bytearray, int]]:
    """For each clip: bytes of the tar in which it lies whole, and where these begin. At the end nothing may follow."""
    buffer = bytearray()
    with tar.open("rb", buffering=0) as file:
        number = base = 0
        while number < len(ends):
            stop = number + 1
            while stop < len(ends) and ends[stop] - base <= BLOCK_BYTES:
                stop += 1
            if len(buffer) < ends[stop - 1] - base:
                buffer = bytearray(ends[stop - 1] - base)
            _ask_for(file, ends[stop - 1])
            _fill(file, memoryview(buffer)[: ends[stop - 1] - base], base)
            yield from repeat((buffer, base), stop - number)
            number, base = stop, ends[stop - 1]
        while rest := file.read(BLOCK_BYTES):
            if any(rest):
                raise EOFError(f"something follows its last member, after byte {base}")


def _ask_for(file: IO[bytes], start: int) -> None:
    """Asks the system to read what comes next while what is there is hashed."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def _fill(file: IO[bytes], block: memoryview, base: int) -> None:
    filled = 0
    while filled < len(block):
        got = file.readinto(block[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"it ends at byte {base + filled}")
        filled += got


def _faults(pcm: measures.Pcm, spectrum: bool) -> Iterator[tuple[Kind, str]]:
    """What a recording suffers from. spectrum: DC offset and band are looked at as well."""
    lowest, highest = int(np.minimum.reduce(pcm)), int(np.maximum.reduce(pcm))
    if measures.is_quiet(lowest, highest):
        yield Kind.QUIET, f"peak {max(highest, -lowest)} of 32768"
    if spectrum:
        if (offset := measures.dc_offset(pcm)) is not None:
            yield Kind.DC_OFFSET, f"{100 * offset:+.1f} %"
        if (rate_hz := measures.narrow_band_hz(pcm)) is not None:
            yield Kind.NARROW_BAND, f"nothing above {rate_hz // 2} Hz"
