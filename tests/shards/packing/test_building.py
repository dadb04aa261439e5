"""What pack() leaves at OUT: what may be replaced, and what there is after a full disk, an interruption, a kill."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from remote_files import bytes_of

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing import building as building_module
from unfused_fast.shards.packing.building import building, complete
from unfused_fast.shards.packing.finish import PackResult
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import ShardWriter
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def _pack(rows: list[SourceRow], out: Path, **options: Any) -> PackResult:
    return pack(rows, out, **{"workers": 0, **options})


def test_what_is_at_out_stays_unless_it_may_go(rows: list[SourceRow], copy: Path, tmp_path: Path) -> None:
    before = bytes_of(copy)
    with pytest.raises(UserError, match=r"copy: a shard set is already there; .* --overwrite"):
        _pack(rows[:9], copy)
    assert bytes_of(copy) == before
    _pack(rows[:9], copy, overwrite=True)
    assert open_shards(copy).clips.num_rows == 9 and check(copy, workers=0).corrupt == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"mine: is not empty and is not a shard set"):
            _pack(rows[:9], tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(UserError, match=r"file: a file"):
            _pack(rows[:9], tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert _pack(rows[:9], tmp_path / "empty").packed == 9
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial/train-000000.tar").write_text("of an older version")
    with pytest.raises(UserError, match=r"new.partial: not an unfinished set that .*--overwrite"):
        _pack(rows[:9], tmp_path / "new")
    assert _pack(rows[:9], tmp_path / "new", overwrite=True).packed == 9


def test_two_packs_to_one_place(rows: list[SourceRow], tmp_path: Path) -> None:
    with building(tmp_path / "out", {"part": None}, overwrite=False, resume=False) as journal:
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is packing to it"):
                _pack(rows[:9], tmp_path / "out", overwrite=overwrite)
        assert journal.begun
        complete(journal.set_folder, "manifest.json", "{}")


# What is left when it is stopped, and how it goes on


def _failing_add(after: int, error: BaseException) -> Callable[..., None]:
    add, calls = ShardWriter.add, iter(range(1000))

    def failing(self: ShardWriter, key: str, members: dict[str, bytes]) -> None:
        if next(calls) == after:
            raise error
        add(self, key, members)

    return failing


def _stopped(rows: list[SourceRow], out: Path, error: BaseException | None = None, **options: Any) -> None:
    """Packs until the third shard is half done."""
    error = error or KeyboardInterrupt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "add", _failing_add(25, error))
        with pytest.raises(type(error)):
            _pack(rows, out, clips_per_shard=10, **options)


@pytest.mark.parametrize("damage", [False, True])
def test_a_stopped_run_leaves_out_as_it_was_and_is_resumed(
    rows: list[SourceRow], copy: Path, packed: ShardSet, tmp_path: Path, damage: bool
) -> None:
    before = bytes_of(copy)
    _stopped(rows, copy, RuntimeError("a fault") if damage else None, overwrite=True)
    assert bytes_of(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.partial"]
    if damage:
        with (tmp_path / "copy.partial/train-000001.tar").open("r+b") as tar:
            tar.truncate(1000)
    resumed = _pack(rows, copy, resume=True, clips_per_shard=10)
    assert (resumed.shards, resumed.shards_made) == (6, 3 + damage)
    assert bytes_of(copy) == bytes_of(packed.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("moment", ["set replaced", "set in its place"])
def test_a_run_killed_between_its_last_steps_is_ended_by_the_same_command(
    rows: list[SourceRow], copy: Path, packed: ShardSet, tmp_path: Path, moment: str
) -> None:
    def killed(path: Path, target: Path | None = None) -> None:
        if target is None or path.suffix == ".partial":
            raise KeyboardInterrupt
        path.rename(target)

    _pack(rows[:9], copy, overwrite=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((Path, "replace") if moment == "set replaced" else (building_module, "tidy")), killed)
        with pytest.raises(KeyboardInterrupt):
            _pack(rows, copy, clips_per_shard=10, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2
    if moment == "set replaced":
        with pytest.raises(UserError, match="already there"):
            _pack(rows, copy, clips_per_shard=10)
        assert open_shards(copy).clips.num_rows == 9
    _pack(rows, copy, clips_per_shard=10, resume=True)
    assert bytes_of(copy) == bytes_of(packed.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_unfinished_set_is_resumed_only_by_the_same_request(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _stopped(rows, out)
    with pytest.raises(UserError, match=r"started with different options \(seed 0 there, 3 now\)"):
        _pack(rows, out, clips_per_shard=10, seed=3)
    with pytest.raises(UserError, match=r"files 45 there, 44 now; sources"):
        _pack(rows[:-1], out, clips_per_shard=10, resume=True)
    again = _pack(rows, out, clips_per_shard=10, overwrite=True)
    assert again.shards_made == again.shards == 6
    assert bytes_of(out) == bytes_of(packed.directory)


DAMAGED_REQUESTS = [
    "",
    "{",
    "\0\xff\1",
    "5",
    "null",
    "[]",
    '{"owner": "x"}',
    '{"owner": 5, "request": {}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED_REQUESTS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_request_that_cannot_be_read(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path, content: str, shards: bool
) -> None:
    """Also where no shard was made, but headers, which may be of other files, were read."""
    out, request = tmp_path / "out", tmp_path / "out.partial/journal/request.json"
    _stopped(rows, out)
    request.write_bytes(content.encode("latin-1"))
    for path in [] if shards else [*request.parent.glob("*.parquet"), *request.parent.parent.glob("train*")]:
        path.unlink()
    for resume in (False, True):
        with pytest.raises(
            UserError, match=r"not an unfinished set that this version can resume; delete it, or .* --overwrite"
        ):
            _pack(rows, out, clips_per_shard=10, resume=resume)
    _pack(rows, out, clips_per_shard=10, overwrite=True)
    assert bytes_of(out) == bytes_of(packed.directory)


FOREIGN_LINES = [
    *(
        b"5",
        b"null",
        b"{}",
        b"[0,[[5]]]",
        b"[0, [5]]",
        b"[[], []]",
        b"[0, []]",
        b"[7, [[5, 16000]]]",
        b"\xff\xfe",
        b"[" * 9999,
    ),
    *(b'[0, [["no reason", ""]]]', b"[0," + json.dumps([[5, 0]] * 45).encode() + b"]"),
]


@pytest.mark.parametrize("line", FOREIGN_LINES)
@pytest.mark.parametrize("alone", [False, True])
def test_foreign_lines_in_the_journal(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path, line: bytes, alone: bool
) -> None:
    out, journal = tmp_path / "out", tmp_path / "out.partial/journal"
    _stopped(rows, out)
    for name in ("headers.jsonl", "sent.jsonl"):
        path = journal / name
        path.write_bytes(line if alone or not path.exists() else path.read_bytes() + b"\n" + line + b"\n")
    assert _pack(rows, out, clips_per_shard=10).shards_made == 3
    assert bytes_of(out) == bytes_of(packed.directory)


def _without_column(table: pa.Table) -> pa.Table:
    return table.drop_columns(["samples"])


def _about(value: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({"unfused": json.dumps(value)})


DAMAGED_NOTES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no metadata": lambda table: table.replace_schema_metadata(None),
    "a number": _about(5),
    "null": _about(None),
    "other rejections": _about({"rejected": [5], "bytes": 5}),
    "other bytes": _about({"rejected": [], "bytes": None}),
    "a column less": _without_column,
    "another type": lambda table: table.set_column(0, "split", pa.array([1] * table.num_rows)),
    "a row less": lambda table: table.slice(1).replace_schema_metadata(table.schema.metadata),
}


@pytest.mark.parametrize("kind", [*DAMAGED_NOTES, "cut", "a page", "the index"])
def test_damaged_notes_and_indexes(rows: list[SourceRow], packed: ShardSet, tmp_path: Path, kind: str) -> None:
    """In an unfinished set the shard is made again; a part is refused, before anything is linked."""
    _stopped(rows, tmp_path / "out")
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for number, part in enumerate(parts, 1):
        _pack(rows, part, part=(number, 2), clips_per_shard=10)
    whole = {part: shutil.copytree(part, tmp_path / f"{part.name}-whole") for part in parts}
    for folder in (tmp_path / "out.partial", parts[0]):
        path = folder / "journal/train-000001.parquet"
        data = bytearray(path.read_bytes())
        if kind in DAMAGED_NOTES:
            pq.write_table(DAMAGED_NOTES[kind](pq.read_table(path)), path)
        elif kind == "the index":
            index = folder / "train-000001.idx"
            index.write_text(index.read_text().replace("json", "j on", 1))
        else:
            data[4:400] = bytes(396)
            path.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    assert _pack(rows, tmp_path / "out", clips_per_shard=10).shards_made == 4
    assert bytes_of(tmp_path / "out") == bytes_of(packed.directory)
    with pytest.raises(
        UserError, match=r"part1: train-000001.tar or its index is missing or damaged; copy the part again or pack"
    ):
        merge(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))
    merge([whole[parts[0]], parts[1]], tmp_path / "merged")
    assert bytes_of(tmp_path / "merged") == bytes_of(packed.directory)


def test_rejections_of_a_finished_set_are_told_again(
    mixed: Any, write_tone: Callable[..., Any], tmp_path: Path
) -> None:
    half = write_tone(2.0, 16000, 300)
    half[20000:] = np.nan
    soundfile.write(tmp_path / "half.wav", half, 16000, "FLOAT")
    rows = [*source_rows(mixed.folder), SourceRow(tmp_path / "half.wav", "half.wav")]
    first = _pack(rows, tmp_path / "out", max_seconds=1.0)
    assert "piece 2 of 2: non-finite samples: " in (tmp_path / "out/rejected.csv").read_text(encoding="utf-8")
    assert first.rejected["non-finite samples"] == 3 and len(first.rejected) > 5
    again = _pack(rows, tmp_path / "out", max_seconds=1.0, resume=True)
    assert again.shards_made == 0 and list(again.rejected.items()) == list(first.rejected.items())
    (tmp_path / "out/rejected.csv").write_text("something,else\na,b\n")
    with pytest.raises(UserError, match=r"out/rejected.csv: not a valid list of rejected files .* with --overwrite"):
        _pack(rows, tmp_path / "out", max_seconds=1.0, resume=True)


def test_a_finished_set_is_left_as_it_is_by_resume(rows: list[SourceRow], copy: Path) -> None:
    before = bytes_of(copy)
    same = _pack(rows, copy, clips_per_shard=10, resume=True)
    assert (same.packed, same.shards_made) == (45, 0) and bytes_of(copy) == before
    with pytest.raises(UserError, match="finished, but packed from different sources or with different options"):
        _pack(rows[:9], copy, clips_per_shard=10, resume=True)
    assert bytes_of(copy) == before


def test_write_that_the_system_refuses(rows: list[SourceRow], tmp_path: Path) -> None:
    """A real refusal, by a limit on file sizes, while buffers of open files still wait to be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"File too large; what is packed so far is in out.partial: allow larger files"
        ):
            _pack(rows, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tar"))
    assert _pack(rows, tmp_path / "out").packed == 45


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space and run the same command again, or pack to another disk"),
        (errno.EROFS, "choose an OUT on a disk that can be written"),
        (errno.EACCES, "get the right to write there and run the same command again, or choose another OUT"),
        (errno.EIO, "look for the cause in the system log, or pack to another disk"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_advice_fits_what_the_disk_refuses(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str, begun: bool
) -> None:
    """What is packed so far is named only where there is something."""

    def refusing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((ShardWriter, "add") if begun else (Path, "mkdir")), refusing)
    packed = "what is packed so far is in out.partial: " if begun else ""
    with pytest.raises(UserError, match=f"{os.strerror(number)}; {packed}{advice}$"):
        _pack(rows, tmp_path / "out")


def test_disk_that_is_too_small_is_noticed_first(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.packing.building.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs up to \d+\.\d\d kB more, but the disk has 1\.00 kB free"):
        _pack(rows, tmp_path / "out")


def test_an_unfinished_set_or_a_part_of_one_is_refused_by_readers(rows: list[SourceRow], tmp_path: Path) -> None:
    _pack(rows, tmp_path / "part", part=(1, 2))
    with pytest.raises(UserError, match=r"a part of a set.*unfused-fast merge"):
        open_shards(tmp_path / "part")
    _stopped(rows, tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out.partial"):
        with pytest.raises(UserError, match=r"unfinished; finish it with the same command"):
            open_shards(folder)
