"""What pack() leaves at OUT: what may be replaced, and what there is after a full disk, an interruption, a kill."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from outcomes import Cli, contents, refused

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing.building import Journal, building, complete
from unfused_fast.shards.packing.finish import PackResult
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import ShardWriter
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _pack(rows: list[SourceRow], out: Path, **options: Any) -> PackResult:
    return pack(rows, out, **{"workers": 0, **options})


def test_what_is_at_out_stays_unless_it_may_go(rows: list[SourceRow], copy: Path, tmp_path: Path) -> None:
    before = _bytes(copy)
    with pytest.raises(UserError, match=r"copy: a shard set is already there; .* --overwrite"):
        _pack(rows[:9], copy)
    assert _bytes(copy) == before
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
    with pytest.raises(UserError, match=r"new.partial: not an unfinished set; .*--overwrite"):
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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault")])
def test_a_stopped_run_leaves_out_as_it_was_and_is_gone_on_with(
    rows: list[SourceRow], copy: Path, packed: ShardSet, tmp_path: Path, error: BaseException
) -> None:
    before = _bytes(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "add", _failing_add(25, error))
        with pytest.raises(type(error)):
            _pack(rows, copy, overwrite=True, clips_per_shard=10)
    assert _bytes(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.partial"]
    resumed = _pack(rows, copy, resume=True, clips_per_shard=10)
    assert (resumed.shards, resumed.shards_made) == (6, 3)
    assert _bytes(copy) == _bytes(packed.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_the_disk_is_full_while_packing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone_rows: list[Any]
) -> None:
    folder, out = tone_rows[0].path.parent, tmp_path / "out"
    publish = Journal.publish

    def full(journal: Any, tar: Path, made: Any) -> None:
        if made.name == "train-000001":
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(journal, tar, made)

    def stopped(*flags: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "publish", full)
            done = cli("shard", folder, out, "--workers", 1, *flags)
        refused(
            done, tmp_path, "No space left on device", "is in out.partial", "free some space and run the same command"
        )

    stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    done = cli("shard", folder, out, "--workers", 1, "--json")
    assert done.code == 0 and json.loads(done.out)["shards_made"] == 1, done.err
    before = contents(out)
    stopped("--overwrite")
    assert contents(out) == before
    assert cli("shard", folder, out, "--workers", 1, "--resume").code == 0
    assert contents(out) == before and list(tmp_path.iterdir()) == [out]


def test_an_unfinished_set_is_gone_on_with_only_by_the_same_request(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(ShardWriter, "add", _failing_add(25, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _pack(rows, out, clips_per_shard=10)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"started with different options \(seed 0 there, 3 now\)"):
        _pack(rows, out, clips_per_shard=10, seed=3)
    monkeypatch.setattr("unfused_fast.shards.packing.options.SCHEMA_VERSION", 99)
    with pytest.raises(UserError, match=r"program unfused-fast \S+, schema 5 there, unfused-fast \S+, schema 99 now"):
        _pack(rows, out, clips_per_shard=10, resume=True)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"files 45 there, 44 now; sources"):
        _pack(rows[:-1], out, clips_per_shard=10, resume=True)
    again = _pack(rows, out, clips_per_shard=10, overwrite=True)
    assert again.shards_made == again.shards == 6
    assert _bytes(out) == _bytes(packed.directory)


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
    before = _bytes(copy)
    same = _pack(rows, copy, clips_per_shard=10, resume=True)
    assert (same.packed, same.shards_made) == (45, 0) and _bytes(copy) == before
    with pytest.raises(UserError, match="finished, but packed from different sources or with different options"):
        _pack(rows[:9], copy, clips_per_shard=10, resume=True)
    assert _bytes(copy) == before


def test_a_damaged_shard_of_an_unfinished_set_is_made_again(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, unfinished = tmp_path / "out", tmp_path / "out.partial"
    monkeypatch.setattr(ShardWriter, "add", _failing_add(25, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _pack(rows, out, clips_per_shard=10)
    monkeypatch.undo()
    with (unfinished / "train-000001.tar").open("r+b") as tar:
        tar.truncate(1000)
    assert _pack(rows, out, clips_per_shard=10).shards_made == 4
    assert _bytes(out) == _bytes(packed.directory)


def test_write_that_the_system_refuses(rows: list[SourceRow], tmp_path: Path) -> None:
    """A real refusal, by a limit on file sizes, while buffers of open files still wait to be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written, File too large"):
            _pack(rows, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tar"))
    assert _pack(rows, tmp_path / "out").packed == 45


def test_disk_that_is_too_small_is_noticed_first(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.packing.building.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs up to 0\.00 GB more, but the disk has 0\.00 GB free"):
        _pack(rows, tmp_path / "out")


@pytest.mark.parametrize("kind", ["set", "part"])
def test_an_unfinished_set_is_refused_by_readers(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "part":
        _pack(rows, out, part=(1, 2))
        for _ in range(2):
            with pytest.raises(UserError, match=r"a part of a set.*unfused-fast merge"):
                open_shards(out)
            (out / "part.json").write_text("{")  # nothing in it is needed here
        return
    monkeypatch.setattr(ShardWriter, "add", _failing_add(25, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _pack(rows, out, clips_per_shard=10)
    for folder in (out, tmp_path / "out.partial"):
        with pytest.raises(UserError, match=r"unfinished.*the same unfused-fast shard command"):
            open_shards(folder)
