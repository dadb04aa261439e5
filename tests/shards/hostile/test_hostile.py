"""A folder of hostile files is packed: each ends in the set or in rejected.csv, and nothing else is touched."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile import coded_files, odd_files, wav_files
from hostile.case import PACKED, UNLISTED, Case, build_all

from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.source_rows import source_rows

CASES = wav_files.cases() + coded_files.cases() + odd_files.cases()


@dataclass(frozen=True)
class Outcome:
    """What became of the corpus."""

    folder: Path
    out: Path
    listed: Counter[str]
    packed: Counter[str]
    rejected: Counter[str]
    reasons: dict[str, str]
    touched: dict[str, tuple[int, int]]
    """What lies outside the set and was not there before, or not the same."""


def _name(case: Case) -> str:
    """As the clips table and rejected.csv show it."""
    return case.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> size and time of change of everything below, links not followed."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            status = Path(parent, name).lstat()
            found[str(Path(parent, name))] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    top = tmp_path_factory.mktemp("hostile")
    folder, out = top / "in/corpus", top / "sets/out"
    folder.mkdir(parents=True)
    out.parent.mkdir()
    build_all(CASES, folder)
    before = _snapshot(top)
    rows = source_rows(folder)
    result = pack(rows, out, workers=2, max_seconds=60.0)
    with (out / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["path", "reason"]
    rejected = Counter(path for path, _ in lines)
    after = _snapshot(top)
    touched = {path: what for path, what in after.items() if before.get(path) != what}
    touched = {path: what for path, what in touched.items() if Path(path) not in (out, out.parent, *out.iterdir())}
    assert before.keys() <= after.keys()
    packed = Counter(result.shard_set.clips["source"].to_pylist())
    return Outcome(folder, out, Counter(row.source for row in rows), packed, rejected, dict(lines), touched)


def test_every_file_is_in_the_set_or_rejected_and_never_both(outcome: Outcome) -> None:
    listed = {_name(case) for case in CASES if case.expected != UNLISTED}
    assert len({_name(case) for case in CASES}) == len(CASES) >= 100
    assert outcome.listed == Counter(listed)
    assert sorted([*outcome.packed.elements(), *outcome.rejected.elements()]) == sorted(listed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name)[:80])
def test_it_ends_where_it_belongs(outcome: Outcome, case: Case) -> None:
    reason = outcome.reasons.get(_name(case))
    if case.expected in (PACKED, UNLISTED):
        assert reason is None and outcome.packed[_name(case)] == (case.expected == PACKED)
    else:
        assert reason is not None and case.expected in reason


def test_nothing_outside_the_set_is_written(outcome: Outcome) -> None:
    assert outcome.touched == {}


def test_the_set_is_sound_and_shows_no_path_of_the_machine(outcome: Outcome) -> None:
    assert check(outcome.out, workers=0).corrupt == []
    for path in outcome.out.iterdir():
        assert os.fsencode(outcome.folder) not in path.read_bytes()
