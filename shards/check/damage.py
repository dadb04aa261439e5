"""How a clip differs from what the packer wrote: its tar headers, padding, names and .json, parsed one by one."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from typing import Any

from unfused_fast.shards.check.findings import Kind
from unfused_fast.shards.sets.shard_files import IN_JSON, Member

Damage = tuple[Kind, int, str]
"""Kind, offset in the tar, text."""

_HEADER = tarfile.BLOCKSIZE
_DECODER = json.JSONDecoder()


def member_damage(
    buffer: bytearray, base: int, members: list[Member], row: Mapping[str, Any], codec: str, split: str
) -> Damage | None:
    """What is wrong with a clip's members, their contents apart. The clip lies in `buffer`, the tar from `base` on."""
    for member in members:
        start = member.offset - base
        end, padding = start + member.size, -member.size % _HEADER
        if problem := _header_problem(buffer[start - _HEADER : start], member):
            text = f"{problem}, where the index has {member.name}, {member.size} bytes"
            return Kind.TAR, member.offset - _HEADER, text
        if buffer.count(0, end, end + padding) != padding:
            return Kind.TAR, member.offset + member.size, f"no zeros as padding after {member.name}"
    first, key = members[0], row["key"]
    if any(member.name != f"{key}.{member.extension}" for member in members):
        return Kind.KEY, first.offset, f"{first.name}, where the clips table has {key}"
    if {member.extension for member in members} != {"json", "index", codec} or len(members) != 3:
        return Kind.KEY, first.offset, f"members {', '.join(member.name for member in members)}"
    if row["split"] != split:
        return Kind.SPLIT, first.offset, f"{key} is of split {row['split']} in the clips table"
    return None


def json_damage(
    buffer: bytearray,
    base: int,
    members: list[Member],
    row: Mapping[str, Any],
    codec: str,
    label_names: tuple[str, ...],
) -> Damage | None:
    """What is wrong with the contents of a clip's .index and .json."""
    for member in members:
        if member.extension == codec:
            continue
        content = buffer[member.offset - base : member.offset - base + member.size]
        if member.extension == "index":
            if content != row["key"].encode():
                return Kind.KEY, member.offset, f"the content of {member.name} is not {row['key']}"
        elif problem := _json_problem(content, row, label_names):
            return Kind.JSON, member.offset, f"{member.name} {problem}"
    return None


def _json_problem(content: bytearray, row: Mapping[str, Any], label_names: tuple[str, ...]) -> str | None:
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


def _header_problem(header: bytearray, member: Member) -> str | None:
    """What is there instead of the tar header of a member; None: it is there."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except tarfile.HeaderError as error:
        return f"no tar header ({error})"
    found = info.name, info.size
    return None if found == (member.name, member.size) else f"{info.name}, {info.size} bytes"
