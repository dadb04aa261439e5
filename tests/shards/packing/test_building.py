"""What pack() leaves at OUT: what may be replaced, and what there is after a full disk, an interruption, a kill."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_files import bytes_of
from stopped_packs import pack_alone, stopped

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing import building as building_module
from unfused_fast.shards.packing.building import building, complete
from unfused_fast.shards.sets.shard_files import ShardWriter
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def test_what_is_at_out_stays_unless_it_may_go(rows: list[SourceRow], copy: Path, tmp_path: Path) -> None:
    before = bytes_of(copy)
    with pytest.raises(UserError, match=r"copy: a shard set is already there; .* --overwrite"):
        pack_alone(rows[:9], copy)
    assert bytes_of(copy) == before
    pack_alone(rows[:9], copy, overwrite=True)
    assert open_shards(copy).clips.num_rows == 9 and check(copy, workers=0).corrupt == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"mine: is not empty and is not a shard set, .*; choose a new OUT$"):
            pack_alone(rows[:9], tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(UserError, match=r"file: a file"):
            pack_alone(rows[:9], tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert pack_alone(rows[:9], tmp_path / "empty").packed == 9
    (tmp_path / "new.partial/journal").mkdir(parents=True)
    (tmp_path / "new.partial/train-000000.tar").write_text("of an older version")
    with pytest.raises(UserError, match=r"new.partial: not an unfinished set that .*--overwrite"):
        pack_alone(rows[:9], tmp_path / "new")
    assert pack_alone(rows[:9], tmp_path / "new", overwrite=True).packed == 9


@pytest.mark.parametrize("ending", ["partial", "replaced"])
def test_what_is_beside_out_stays_unless_it_is_ours(rows: list[SourceRow], copy: Path, ending: str) -> None:
    foreign = copy.with_name(f"copy.{ending}") / "train-000000.tar"
    foreign.parent.mkdir()
    foreign.write_text("years")
    for overwrite in (False, True):
        with pytest.raises(
            UserError,
            match=rf"copy.{ending}: packing needs this folder, but it holds something else" if overwrite else "already",
        ):
            pack_alone(rows[:9], copy, overwrite=overwrite)
    assert pack_alone(rows, copy, clips_per_shard=10, resume=True).shards_made == 0
    assert foreign.read_text() == "years"


@pytest.mark.parametrize("inside", ["", "sub"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_cannot_be_replaced(
    rows: list[SourceRow], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, overwrite: bool
) -> None:
    (copy / "sub").mkdir()
    monkeypatch.chdir(copy / inside)
    with pytest.raises(UserError, match="it is the working directory, or holds it; name a folder in it"):
        pack_alone(rows[:9], copy if inside else Path(), overwrite=overwrite)
    for resume in (False, True):
        with pytest.raises(UserError, match=r"^/: the root directory; name a folder in it"):
            pack_alone(rows[:9], Path("/"), overwrite=overwrite, resume=resume)


def test_two_packs_to_one_place(rows: list[SourceRow], tmp_path: Path) -> None:
    with building(tmp_path / "out", {"part": None}, overwrite=False, resume=False) as journal:
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is packing to it"):
                pack_alone(rows[:9], tmp_path / "out", overwrite=overwrite)
        assert journal.begun
        complete(journal.set_folder, "manifest.json", "{}")


# What is left when it is stopped, and how it goes on


@pytest.mark.parametrize("damage", [False, True])
def test_a_stopped_run_leaves_out_as_it_was_and_is_resumed(
    rows: list[SourceRow], copy: Path, packed: ShardSet, tmp_path: Path, damage: bool
) -> None:
    before = bytes_of(copy)
    stopped(rows, copy, RuntimeError("a fault") if damage else None, overwrite=True)
    assert bytes_of(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.partial"]
    if damage:
        with (tmp_path / "copy.partial/train-000001.tar").open("r+b") as tar:
            tar.truncate(1000)
    resumed = pack_alone(rows, copy, resume=True, clips_per_shard=10)
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

    pack_alone(rows[:9], copy, overwrite=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((Path, "replace") if moment == "set replaced" else (building_module, "tidy")), killed)
        with pytest.raises(KeyboardInterrupt):
            pack_alone(rows, copy, clips_per_shard=10, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2
    if moment == "set replaced":
        with pytest.raises(UserError, match="already there"):
            pack_alone(rows, copy, clips_per_shard=10)
        assert open_shards(copy).clips.num_rows == 9
    pack_alone(rows, copy, clips_per_shard=10, resume=True)
    assert bytes_of(copy) == bytes_of(packed.directory)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_rejections_of_a_finished_set_are_told_again(
    mixed: Any, write_tone: Callable[..., Any], tmp_path: Path
) -> None:
    half = write_tone(2.0, 16000, 300)
    half[20000:] = np.nan
    soundfile.write(tmp_path / "half.wav", half, 16000, "FLOAT")
    rows = [*source_rows(mixed.folder), SourceRow(tmp_path / "half.wav", "half.wav")]
    first = pack_alone(rows, tmp_path / "out", max_seconds=1.0)
    assert "piece 2 of 2: non-finite samples: " in (tmp_path / "out/rejected.csv").read_text(encoding="utf-8")
    assert first.rejected["non-finite samples"] == 3 and len(first.rejected) > 5
    again = pack_alone(rows, tmp_path / "out", max_seconds=1.0, resume=True)
    assert again.shards_made == 0 and list(again.rejected.items()) == list(first.rejected.items())
    (tmp_path / "out/rejected.csv").write_text("something,else\na,b\n")
    with pytest.raises(UserError, match=r"out/rejected.csv: not a valid list of rejected files .* with --overwrite"):
        pack_alone(rows, tmp_path / "out", max_seconds=1.0, resume=True)


def test_a_finished_set_is_left_as_it_is_by_resume(rows: list[SourceRow], copy: Path) -> None:
    before = bytes_of(copy)
    same = pack_alone(rows, copy, clips_per_shard=10, resume=True)
    assert (same.packed, same.shards_made) == (45, 0) and bytes_of(copy) == before
    with pytest.raises(UserError, match="finished, but packed from different sources or with different options"):
        pack_alone(rows[:9], copy, clips_per_shard=10, resume=True)
    assert bytes_of(copy) == before


def test_write_that_the_system_refuses(rows: list[SourceRow], tmp_path: Path) -> None:
    """A real refusal, by a limit on file sizes, while buffers of open files still wait to be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"File too large; what is packed so far is in out.partial: allow larger files"
        ):
            pack_alone(rows, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tar"))
    assert pack_alone(rows, tmp_path / "out").packed == 45


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space and run the same command again, or pack to another disk"),
        (errno.EROFS, "choose an OUT on a disk that can be written"),
        (errno.EACCES, "make it writable and run the same command again, or choose another OUT"),
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
        pack_alone(rows, tmp_path / "out")


def test_disk_that_is_too_small_is_noticed_first(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.packing.building.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"up to \d+\.\d\d kB more, but the disk has 1\.00 kB free;.*flac --overwrite"):
        pack_alone(rows, tmp_path / "out")


def test_an_unfinished_set_or_a_part_of_one_is_refused_by_readers(rows: list[SourceRow], tmp_path: Path) -> None:
    pack_alone(rows, tmp_path / "part", part=(1, 2))
    with pytest.raises(UserError, match=r"a part of a set.*unfused-fast merge"):
        open_shards(tmp_path / "part")
    stopped(rows, tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out.partial"):
        with pytest.raises(UserError, match=r"unfinished; finish it with the same command"):
            open_shards(folder)
