"""What pack() leaves at OUT: what may be replaced, and what there is after a full disk, an interruption, a kill."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.building import building
from unfused_fast.shards.check import check
from unfused_fast.shards.shard_files import ShardWriter
from unfused_fast.shards.sources import SourceRow
from unfused_fast.shards.table import ShardSet, open_shards
from unfused_fast.shards.write import PackResult, pack


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _pack(rows: list[SourceRow], out: Path, **options: Any) -> PackResult:
    return pack(rows, out, **{"workers": 1, **options})


def test_what_is_at_out_stays_unless_it_may_go(rows: list[SourceRow], copy: Path, tmp_path: Path) -> None:
    before = _bytes(copy)
    with pytest.raises(UserError, match=r"copy: a shard set is already there; .* --overwrite"):
        _pack(rows[:9], copy)
    assert _bytes(copy) == before
    _pack(rows[:9], copy, overwrite=True)
    assert open_shards(copy).clips.num_rows == 9 and check(copy) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"mine: a folder with other things in it"):
            _pack(rows[:9], tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(UserError, match=r"file: a file"):
            _pack(rows[:9], tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert _pack(rows[:9], tmp_path / "empty").packed == 9


def test_two_packs_to_one_place(rows: list[SourceRow], tmp_path: Path) -> None:
    with building(tmp_path / "out", overwrite=False) as build:
        (build.folder / "kept").write_text("x")
        with pytest.raises(UserError, match="another process is packing to it"):
            _pack(rows[:9], tmp_path / "out")
        assert (build.folder / "kept").exists()
        build.finish("{}")


# What is left when it is stopped


def _failing_add(after: int, error: BaseException) -> Callable[..., None]:
    add, calls = ShardWriter.add, iter(range(1000))

    def failing(self: ShardWriter, key: str, members: dict[str, bytes]) -> None:
        if next(calls) == after:
            raise error
        add(self, key, members)

    return failing


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault")])
@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_run_leaves_out_as_it_was(
    rows: list[SourceRow],
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    workers: int,
) -> None:
    before = _bytes(copy)
    monkeypatch.setattr(ShardWriter, "add", _failing_add(20, error))
    with pytest.raises(type(error)):
        _pack(rows, copy, overwrite=True, workers=workers)
    assert _bytes(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_full_disk(rows: list[SourceRow], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _bytes(copy)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(ShardWriter, "add", _failing_add(20, full))
    with pytest.raises(
        UserError, match=rf"{tmp_path}: .*No space left.* needs up to 0\.00 GB; nothing at .*copy was touched"
    ):
        _pack(rows, copy, overwrite=True)
    assert _bytes(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_write_that_the_system_refuses(rows: list[SourceRow], tmp_path: Path) -> None:
    """A real refusal, by a limit on file sizes, while buffers of open files still wait to be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written, File too large"):
            _pack(rows, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_too_small_is_noticed_first(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.building.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs up to 0\.00 GB, but the disk has 0\.00 GB free"):
        _pack(rows, tmp_path / "out")


def test_killed_run_is_no_set_and_does_not_hinder_the_next(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path
) -> None:
    listed = [[str(row.path), row.source, row.label, row.split, row.group] for row in rows]
    program = f"""
import json, os, signal, sys
from pathlib import Path
from unfused_fast.shards.sources import SourceRow
from unfused_fast.shards.write import pack
rows = [SourceRow(Path(path), *rest) for path, *rest in json.loads(sys.stdin.read())]
def progress(done, total, rejected):
    if done == 32 and (Path({str(tmp_path / "out.partial")!r}) / "train-000000.tar").exists():
        os.kill(os.getpid(), signal.SIGKILL)
pack(rows, Path({str(tmp_path / "out")!r}), workers=0, clips_per_shard=10, progress=progress)
"""
    killed = subprocess.run([sys.executable, "-c", program], input=json.dumps(listed), text=True, cwd=Path.cwd())
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with pytest.raises(UserError, match="unfinished"):
        open_shards(tmp_path / "out.partial")
    _pack(rows, tmp_path / "out", clips_per_shard=10)
    assert _bytes(tmp_path / "out") == _bytes(packed.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
