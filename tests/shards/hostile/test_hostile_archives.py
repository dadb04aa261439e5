"""Hostile archives: the good member is packed, the others are rejected or left out, nothing is unpacked to disk."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import pytest
from hostile.archive_files import Archive, cases

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.source_rows import source_rows

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_only_what_is_sound_is_packed(tmp_path: Path, case: Archive) -> None:
    path = tmp_path / "a/b" / case.name
    path.parent.mkdir(parents=True)
    path.write_bytes(case.build())
    out = tmp_path / "sets/out"
    out.parent.mkdir()
    before = sorted(tmp_path.rglob("*"))
    try:
        rows = source_rows(path)
        result = pack(rows, out, workers=1)
    except UserError as refused:
        assert case.packed <= case.may, refused
        assert case.name in str(refused) or "none of them usable" in str(refused)
    else:
        sources = result.shard_set.clips["source"].to_pylist()
        names = {PurePosixPath(source).name for source in sources}
        assert case.packed - case.may <= names <= case.packed | case.may
        with (out / "rejected.csv").open(encoding="utf-8", newline="") as stream:
            _, *lines = csv.reader(stream)
        rejected = {source for source, _ in lines}  # a long file once for each of its pieces
        assert not rejected & set(sources)
        assert sorted([*set(sources), *rejected]) == sorted(row.source for row in rows)
    assert [entry for entry in sorted(tmp_path.rglob("*")) if out not in (entry, *entry.parents)] == before
