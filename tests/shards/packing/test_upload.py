"""Sets made behind URLs, in an S3 of this machine and in fsspec's memory: equal to local ones, taken over, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_files import URL, bytes_of, pack_remote, remote_bytes, stop_at, stopped_remote

from unfused_fast.errors import UserError
from unfused_fast.shards.packing import finish as finishing
from unfused_fast.shards.packing import pack as packing
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.packing.upload import destination
from unfused_fast.shards.sets.download import local_set
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow

pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


def test_set_made_in_s3_is_the_local_set_and_is_trained_on(
    s3: Any, tone_rows: list[SourceRow], cli: Callable[..., Any], tiny: list[str], tmp_path: Path, cache: Path
) -> None:
    url, table = "s3://bucket/deep/tones", tmp_path / "list.csv"
    rows = tone_rows[::2]
    table.write_text("path,label,split\n" + "\n".join(f"{row.path},{row.label},{row.split}" for row in rows))
    here = cli("shard", table, tmp_path / "tones", "--json")
    there = cli("shard", table, url, "--json")
    assert (here.code, there.code) == (0, 0), there.err
    local, remote = json.loads(here.out), json.loads(there.out)
    assert remote["out"] == url and remote["bytes"] == local["bytes"] and remote["digest"] == local["digest"]
    assert remote_bytes(s3, "bucket/deep/tones") == bytes_of(tmp_path / "tones")
    assert not list((cache / "packing").iterdir())

    done = cli("train", "pretrain", url, "--out", tmp_path / "run", "--epochs", "1", *tiny)
    assert done.code == 0, done.err
    assert cli("check", url).out.strip() == f"{url}: intact, 48 clips; every shard matches its checksum"
    assert cli("shard", table, url).error.startswith(f"{url}: a shard set is already there")
    assert "shards were there already" in cli("shard", table, url, "--resume").out


def test_parts_are_joined_to_a_url(memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    for number in (1, 2):
        pack(rows, tmp_path / str(number), part=(number, 2), clips_per_shard=10, workers=0)
    there: list[tuple[int, int, int]] = []

    def seen(done: int, total: int, rejected: int) -> None:
        there.append((sum(name.endswith(".idx") for name in remote_bytes(memory)), done, total))

    merge([tmp_path / "1", tmp_path / "2"], URL, progress=seen)
    assert remote_bytes(memory) == bytes_of(packed.directory)
    assert there == [(number, number, 6) for number in range(1, 7)], "a shard counts when it is behind the URL"


def test_shards_leave_the_disk_as_they_are_sent_but_those_to_be_measured(
    memory: Any, rows: list[SourceRow], mixed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files that are rejected, so that later shards are numbered anew before they are sent."""
    broken = mixed.folder / "nan.wav"
    rows = [*rows, *(SourceRow(broken, f"s{number}", "dog", "train", "x") for number in range(9))]
    monkeypatch.setattr(finishing, "STATISTICS_CLIPS", 11)
    monkeypatch.setattr(packing, "NUMBERING_BEHIND", 0)
    here: list[int] = []
    put = type(memory).put_file

    def seen(self: Any, local: str, *rest: Any, **options: Any) -> None:
        here.append(len(list(Path(local).parent.glob("*.tar"))))
        put(self, local, *rest, **options)

    monkeypatch.setattr(type(memory), "put_file", seen)
    measured: list[int] = []

    def statistics(clips: Iterator[Any]) -> dict[str, float]:
        measured.append(sum(1 for _ in clips))
        return {"mean": 0.0, "std": 1.0}

    result = pack_remote(rows, statistics=statistics, clips_per_shard=5)
    wanted = pack(rows, tmp_path / "here", workers=0, clips_per_shard=5, statistics=statistics)
    assert measured == [11, 11]
    assert result.shards > 8 and max(here) <= 4
    assert remote_bytes(memory) == bytes_of(tmp_path / "here")
    again = pack_remote(rows, clips_per_shard=5, resume=True)
    assert again.shards_made == 0
    for described in (result, again):
        assert (described.shard_bytes, described.rejected) == (wanted.shard_bytes, {"non-finite samples": 9})


def test_passing_errors_are_tried_again_and_lasting_ones_said(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(memory, patch, "put_file", "train-000000.tar", OSError("slow down"), times=2)
        pack_remote(rows[:9], "memory://bucket/set-one")
        assert calls.count("train-000000.tar") == 3
    for error in (OSError(28, "bucket is full"), PermissionError("Access Denied")):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(memory, patch, "put_file", "train-000002.tar", error)
            said = rf"^memory://bucket/set: cannot be written .*{str(error)[-6:]}.*are kept"
            with pytest.raises(UserError, match=said):
                pack_remote(rows)
    assert "manifest.json" not in remote_bytes(memory)
    assert pack_remote(rows).shards_made < 6
    assert remote_bytes(memory) == bytes_of(packed.directory)


def test_urls_that_cannot_be_written(s3: Any, memory: Any, rows: list[SourceRow], mixed: Any, cache: Path) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere/set: cannot be written \(no such bucket or folder\); make it"):
        pack_remote(rows, "s3://nowhere/set")
    with pytest.raises(UserError, match="web server is read-only") as raised:
        pack_remote(rows, "https://me:hunter2@example.org/set")
    assert "hunter2" not in str(raised.value)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(memory, patch, "pipe_file", "writing.json", NotImplementedError())
        with pytest.raises(UserError, match="bucket/set: files of this kind of URL cannot be written; name a URL"):
            pack_remote(rows)
    with pytest.raises(UserError, match="nothing was written"):
        pack_remote([SourceRow(mixed.folder / "nan.wav", "nan.wav", None, "train", "x")])
    assert remote_bytes(memory) == {} and not list((cache / "packing").iterdir())


def test_file_url_is_a_folder(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "with space"
    pack_remote(rows, out.as_uri())
    assert bytes_of(out) == bytes_of(packed.directory) and local_set(out.as_uri()) == local_set(out) == out


def test_what_is_there_stays_unless_it_may_go(
    memory: Any, rows: list[SourceRow], packed: ShardSet, cache: Path
) -> None:
    memory.pipe_file("/bucket/set/thesis.txt", b"years")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"bucket/set: is not empty \(thesis.txt\)"):
            pack_remote(rows, overwrite=overwrite)
    memory.rm_file("/bucket/set/thesis.txt")
    pack_remote(rows, clips_per_shard=3)
    before = remote_bytes(memory)
    with pytest.raises(UserError, match=r"a shard set is already there; .* --overwrite"):
        pack_remote(rows)
    with pytest.raises(UserError, match="finished, but packed from different sources or with different options"):
        pack_remote(rows, resume=True)
    assert remote_bytes(memory) == before
    shutil.copytree(packed.directory, destination(URL)[0])  # what a kill at the very end leaves
    pack_remote(rows, overwrite=True)
    assert remote_bytes(memory) == bytes_of(packed.directory) and not list((cache / "packing").iterdir())
    again = pack_remote(rows, resume=True)
    assert (again.packed, again.shards_made) == (45, 0)


def test_stopped_overwrite_leaves_the_old_set_until_the_first_shard_and_is_resumed(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    pack_remote(rows[:9])
    before = remote_bytes(memory)
    stopped_remote(memory, rows, "rm_file", "manifest.json", overwrite=True)
    after = remote_bytes(memory)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"writing.json"}
    assert open_shards(local_set(URL)).clips.num_rows == 9
    stopped_remote(memory, rows, "put_file", "train-000001")
    assert "manifest.json" not in remote_bytes(memory)
    pack_remote(rows)
    assert remote_bytes(memory) == bytes_of(packed.directory)


def test_second_writer_is_refused_until_it_overwrites_and_then_the_first_stops(
    memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines are two cache folders."""
    stopped_remote(memory, rows, "put_file", "train-000001")
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"bucket/set: .*@.* has been packing to it since .* --overwrite"):
        pack_remote(rows)
    stopped_remote(memory, rows, "put_file", "train-000001", overwrite=True)
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="has been packing to it since"):
        pack_remote(rows)
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "other"))
    pack_remote(rows)
    assert remote_bytes(memory) == bytes_of(packed.directory)


def test_writer_that_lost_the_set_to_another_stops(memory: Any, rows: list[SourceRow]) -> None:
    put = type(memory).put_file

    def taken(self: Any, local: str, path: str, **options: Any) -> None:
        put(self, local, path, **options)
        if "train-000001.tar" in path:
            claim = {"owner": "other", "by": "b@c", "since": "now"}
            self.pipe_file("/bucket/set/writing.json", json.dumps(claim).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", taken)
        with pytest.raises(UserError, match="no longer written by this command, b@c has been packing to it since now"):
            pack_remote(rows)
    assert "train-000002.tar" not in remote_bytes(memory) and "manifest.json" not in remote_bytes(memory)
