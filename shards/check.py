"""Is a shard set still what it was when it was written?"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError
from unfused_fast.shards.clip_codec import decode_clip
from unfused_fast.shards.shard_files import IN_JSON, Member, check_index, index_path, read_members
from unfused_fast.shards.table import CLIPS, Manifest, clips_digest, read_clips, read_manifest

__all__ = ["check", "check_index"]


def check(directory: Path) -> list[str]:
    """Reads all of a set and compares: tars with indexes, members with the table, the table with the manifest.

    Returns:
        One sentence per problem, each naming its file; empty: the set is whole. After a problem in a shard, the rest of
        that shard is not looked at.
    """
    try:
        manifest, clips = read_manifest(directory), read_clips(directory)
    except UserError as error:
        return [str(error)]
    problems = []
    counted = sum(info.clips for info in manifest.splits.values())
    if counted != clips.num_rows:
        problems.append(f"{directory / CLIPS}: {clips.num_rows} clips, but the manifest has {counted}")
    if clips_digest(clips, manifest.label_names) != manifest.digest:
        problems.append(f"{directory / CLIPS}: its digest is not the manifest's")
    start = 0
    for split, info in manifest.splits.items():
        first, lost = start, False
        for name in info.shards:
            try:
                samples = check_index(directory / name, index_path(directory / name))
            except UserError as error:
                problems.append(str(error))
                lost = True
                continue
            if lost:  # one bad shard does not make the next ones look wrong
                start, lost = _first_id(samples, start), False
            rows = clips.slice(start, len(samples)).to_pylist()
            problem = next(_shard_problems(directory / name, samples, rows, split, start, manifest), None)
            if problem:
                problems.append(f"{directory / name}: {problem}")
            start += len(samples)
        if start - first != info.clips and not problems:
            problems.append(
                f"{directory}: split {split} has {start - first} clips in its shards, but the manifest {info.clips}"
            )
        start = first + info.clips
    return problems


def _shard_problems(
    tar: Path, samples: list[list[Member]], rows: list[dict[str, Any]], split: str, start: int, manifest: Manifest
) -> Iterator[str]:
    """The problems of one shard, in the order in which they are found."""
    yield from _member_problems(tar, samples)
    if len(rows) != len(samples):
        yield f"{len(samples)} clips from id {start} on, but the clips table has {len(rows)} left"
    try:
        contents = read_members(tar, samples)
        for number, (row, members, content) in enumerate(zip(rows, samples, contents, strict=True), start):
            name = members[0].name
            if any(member.name != f"{row['key']}.{member.extension}" for member in members) or row["clip_id"] != number:
                yield f"{name}, where the clips table has {row['key']}"
            if row["split"] != split:
                yield f"{name}: of split {row['split']} in the clips table"
            if content.get("index") != row["key"].encode():
                yield f"{name}: its .index is not {row['key']}"
            yield from _json_problems(name, content.get("json", b""), row, manifest)
            try:
                pcm = decode_clip(content.get(manifest.codec, b""))
            except ValueError as error:
                yield f"{name}: its audio cannot be decoded: {error}"
            else:
                if (
                    len(pcm) != row["samples"]
                    or hashlib.sha256(pcm.astype("<i2", copy=False).tobytes()).hexdigest() != row["sha256"]
                ):
                    yield f"{name}: its samples are not those that were packed (sha256), at byte {members[0].offset}"
    except (OSError, UserError) as error:
        yield str(error)


def _member_problems(tar: Path, samples: list[list[Member]]) -> Iterator[str]:
    """Whether the tar, read from header to header, has exactly the members of the index."""
    expected = [(member.name, member.offset, member.size) for members in samples for member in members]
    found = []
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                found.append((info.name, info.offset_data, info.size))
    except (tarfile.TarError, OSError) as error:
        yield f"not readable as tar after {len(found)} members: {error}"
        return
    for there, wanted in zip(found, expected, strict=False):
        if there != wanted:
            yield "{} at byte {}, {} bytes".format(*there) + ", where the index has {} at {}, {} bytes".format(*wanted)
    if len(found) != len(expected):
        yield f"{len(found)} members, but the index has {len(expected)}"


def _json_problems(name: str, text: bytes, row: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    try:
        described = json.loads(text)
    except ValueError:
        yield f"{name}: its .json is none"
        return
    names = [manifest.label_names[label] for label in row["labels"] if 0 <= label < len(manifest.label_names)]
    wanted = {key: row[key] for key in ("clip_id", *IN_JSON)} | {"label_names": names}
    if described != wanted:
        yield f"{name}: its .json says {described}, but the clips table {wanted}"


def _first_id(samples: list[list[Member]], otherwise: int) -> int:
    key = samples[0][0].name.partition(".")[0]
    return int(key) if key.isascii() and key.isdigit() else otherwise
