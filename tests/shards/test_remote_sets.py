"""Sets behind URLs: made in an S3 of this machine and in fsspec's memory, stopped, taken over, read back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards import finish as finishing
from unfused_fast.shards.check import check
from unfused_fast.shards.finish import PackResult
from unfused_fast.shards.local_sets import local_set
from unfused_fast.shards.merge import merge
from unfused_fast.shards.options import PackOptions
from unfused_fast.shards.remote_sets import RemoteSet, destination
from unfused_fast.shards.rows import SourceRow
from unfused_fast.shards.table import ShardSet, open_shards
from unfused_fast.shards.write import pack, pack_part

fsspec = pytest.importorskip("fsspec", reason="needs the extra `remote`")
URL = "memory://bucket/set"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def _pack(rows: list[SourceRow], out: str = URL, **options: Any) -> PackResult:
    return pack(rows, out, **{"workers": 0, "clips_per_shard": 10, **options})


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _remote(system: Any, path: str = "/bucket/set") -> dict[str, bytes]:
    return {name.rpartition("/")[2]: system.cat_file(name) for name in sorted(system.find(path))}


def _stop_at(
    system: Any, patch: pytest.MonkeyPatch, method: str, name: str, error: BaseException, times: int = 1000
) -> list[str]:
    """From now on the method of the file system raises for files of this name; gives the files it was called for."""
    original, calls = getattr(type(system), method), list[str]()

    def stopped(self: Any, *paths: str, **options: Any) -> Any:
        path = next(path for path in reversed(paths) if isinstance(path, str) and "bucket/set" in path)
        calls.append(path.rpartition("/")[2])
        if name in path and sum(name in call for call in calls) <= times:
            raise error
        return original(self, *paths, **options)

    patch.setattr(type(system), method, stopped)
    return calls


# Making one


def test_set_made_in_s3_is_the_local_set_and_trains_like_it(
    s3: Any, tone_rows: list[SourceRow], cli: Callable[..., Any], tiny: list[str], tmp_path: Path, cache: Path
) -> None:
    url, folder = "s3://bucket/deep/tones", tmp_path / "audio"
    folder.mkdir()
    lines = ["path,label,split"]
    for row in tone_rows:
        assert isinstance(row.path, Path)
        lines.append(f"{row.path},{row.label},{row.split}")
    (folder / "list.csv").write_text("\n".join(lines))
    here = cli("shard", folder / "list.csv", tmp_path / "tones", "--json")
    there = cli("shard", folder / "list.csv", url, "--json")
    assert (here.code, there.code) == (0, 0), there.err
    local, remote = json.loads(here.out), json.loads(there.out)
    assert remote["out"] == url and remote["bytes"] == local["bytes"] and remote["digest"] == local["digest"]
    assert _remote(s3, "bucket/deep/tones") == _bytes(tmp_path / "tones")
    assert not list((cache / "packing").iterdir())

    results = []
    for shards, run in ((tmp_path / "tones", "a"), (url, "b")):
        done = cli("train", "pretrain", shards, "--out", tmp_path / run, "--epochs", "1", "--json", *tiny)
        assert done.code == 0, done.err
        results.append(json.loads(done.out)["loss"])
    assert results[0] == results[1]
    assert cli("check", url).out.strip() == f"{url}: all shards are as they were written, 96 clips"
    assert cli("shard", folder / "list.csv", url).error.startswith(f"{url}: a shard set is already there")
    assert "shards were there already" in cli("shard", folder / "list.csv", url, "--resume").out


def test_parts_are_joined_to_a_url(memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    for number in (1, 2):
        pack_part(rows, tmp_path / str(number), (number, 2), PackOptions(clips_per_shard=10), workers=0)
    there: list[tuple[int, int, int]] = []

    def seen(done: int, total: int, rejected: int) -> None:
        there.append((sum(name.endswith(".idx") for name in _remote(memory)), done, total))

    merge([tmp_path / "1", tmp_path / "2"], URL, progress=seen)
    assert _remote(memory) == _bytes(packed.directory)
    assert there == [(number, number, 6) for number in range(1, 7)], "a shard counts when it is behind the URL"


def test_shards_leave_the_disk_as_they_are_sent_but_those_to_be_measured(
    memory: Any,
    rows: list[SourceRow],
    mixed: Any,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With files that are rejected, so that later shards are numbered anew before they are sent."""
    silent = mixed.folder / "silent.wav"
    rows = [*rows, *(SourceRow(silent, f"s{number}", "dog", "train", "x") for number in range(9))]
    monkeypatch.setattr(finishing, "STATISTICS_CLIPS", 11)
    here: list[int] = []
    put = type(memory).put_file

    def seen(self: Any, local: str, *rest: Any, **options: Any) -> None:
        here.append(len(list(Path(local).parent.glob("*.tar"))))
        put(self, local, *rest, **options)

    monkeypatch.setattr(type(memory), "put_file", seen)
    measured: list[int] = []

    def statistics(clips: Iterator[Any]) -> dict[str, float]:
        measured.append(sum(1 for _ in clips))
        return {"mean": 0.0}

    result = _pack(rows, statistics=statistics, clips_per_shard=5)
    wanted = pack(rows, tmp_path / "here", workers=0, clips_per_shard=5, statistics=statistics)
    assert measured == [11, 11]
    assert result.shards > 8 and max(here) <= 4
    assert _remote(memory) == _bytes(tmp_path / "here")
    again = _pack(rows, clips_per_shard=5, resume=True)
    assert again.shards_made == 0
    for described in (result, again):
        assert (described.shard_bytes, described.rejected) == (wanted.shard_bytes, {"silent": 9})


@pytest.mark.parametrize("stopped_at", ["train-000001.idx", "valid-000000.tar", "clips.parquet", "manifest.json"])
def test_stopped_upload_is_unfinished_for_readers_and_gone_on_with(
    memory: Any, rows: list[SourceRow], packed: ShardSet, cache: Path, stopped_at: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = _stop_at(memory, patch, "put_file", stopped_at, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _pack(rows)
    sent = {name for name in calls[:-1] if name.endswith(".tar")} - {stopped_at, stopped_at.replace("idx", "tar")}
    with pytest.raises(UserError, match=r"set: unfinished, .*@.* has been packing to it since .*; wait for it, or fin"):
        local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        calls = _stop_at(memory, patch, "put_file", "nothing", KeyboardInterrupt())
        resumed = _pack(rows)
    assert not sent & set(calls) and resumed.shards_made <= 6 - len(sent)
    assert _remote(memory) == _bytes(packed.directory)
    assert not list((cache / "packing").iterdir())


def test_shard_that_changed_or_went_there_is_made_and_sent_again(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "put_file", "test-", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _pack(rows)
    memory.rm_file("/bucket/set/train-000001.idx")
    memory.pipe_file("/bucket/set/valid-000000.tar", b"half")
    _pack(rows)
    assert _remote(memory) == _bytes(packed.directory)


def test_passing_errors_are_tried_again_and_lasting_ones_said(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = _stop_at(memory, patch, "put_file", "train-000000.tar", OSError("slow down"), times=2)
        _pack(rows[:9], "memory://bucket/set-one")
        assert calls.count("train-000000.tar") == 3
    for error, said in (
        (OSError(28, "bucket is full"), "bucket is full"),
        (PermissionError("Access Denied"), "Denied"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            calls = _stop_at(memory, patch, "put_file", "train-000002.tar", error)
            with pytest.raises(
                UserError, match=rf"^memory://bucket/set: cannot be written .*{said}.*is kept"
            ) as raised:
                _pack(rows)
            assert "Traceback" not in str(raised.value)
    assert "manifest.json" not in _remote(memory)
    assert _pack(rows).shards_made < 6
    assert _remote(memory) == _bytes(packed.directory)


def test_missing_bucket_and_secrets(s3: Any, rows: list[SourceRow], cache: Path) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere/set: cannot be written \(no such bucket or folder\); make it"):
        _pack(rows, "s3://nowhere/set")
    with pytest.raises(UserError, match="web server is only read") as raised:
        _pack(rows, "https://me:hunter2@example.org/set")
    assert "hunter2" not in str(raised.value)
    assert not list((cache / "packing").iterdir())


def test_url_that_is_only_read(memory: Any, rows: list[SourceRow]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "pipe_file", "writing.json", NotImplementedError())
        with pytest.raises(UserError, match="bucket/set: files of this kind of URL cannot be written; name a URL"):
            _pack(rows)


def test_what_a_kill_at_the_very_end_leaves_is_no_hindrance(
    memory: Any, rows: list[SourceRow], packed: ShardSet, cache: Path
) -> None:
    _pack(rows[:9])
    folder, _ = destination(URL)
    shutil.copytree(packed.directory, folder)
    _pack(rows, overwrite=True)
    assert _remote(memory) == _bytes(packed.directory) and not list((cache / "packing").iterdir())


def test_file_url_is_a_folder(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "with space"
    _pack(rows, out.as_uri())
    assert _bytes(out) == _bytes(packed.directory) and local_set(out.as_uri()) == out
    assert local_set(str(out)) == local_set(out) == out


# What is there before


def test_what_is_there_stays_unless_it_may_go(memory: Any, rows: list[SourceRow], packed: ShardSet) -> None:
    memory.pipe_file("/bucket/set/thesis.txt", b"years")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"bucket/set: holds other things \(thesis.txt\)"):
            _pack(rows, overwrite=overwrite)
    memory.rm_file("/bucket/set/thesis.txt")
    _pack(rows, clips_per_shard=3)
    before = _remote(memory)
    with pytest.raises(UserError, match=r"a shard set is already there; .* --overwrite"):
        _pack(rows)
    with pytest.raises(UserError, match="finished, but packed from other sources or with other options"):
        _pack(rows, resume=True)
    assert _remote(memory) == before
    _pack(rows, overwrite=True)
    assert _remote(memory) == _bytes(packed.directory)
    again = _pack(rows, resume=True)
    assert (again.packed, again.shards_made) == (45, 0)


def test_stopped_overwrite_leaves_the_old_set_until_the_first_shard_and_is_gone_on_with(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    _pack(rows[:9])
    before = _remote(memory)
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "rm_file", "manifest.json", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _pack(rows, overwrite=True)
    after = _remote(memory)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"writing.json"}
    assert open_shards(local_set(URL)).clips.num_rows == 9
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "put_file", "train-000001", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _pack(rows)
    assert "manifest.json" not in _remote(memory)
    _pack(rows)
    assert _remote(memory) == _bytes(packed.directory)


def test_set_stopped_between_its_manifest_and_the_end_is_ended_by_the_same_command(
    memory: Any, rows: list[SourceRow], packed: ShardSet, cache: Path
) -> None:
    for left in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            _stop_at(memory, patch, "rm_file", "writing.json", KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                _pack(rows, overwrite=True)
        if not left:
            memory.rm_file("/bucket/set/writing.json")
        assert _pack(rows).shards_made == 0
        assert _remote(memory) == _bytes(packed.directory) and not list((cache / "packing").iterdir())


def test_second_writer_is_refused_until_it_overwrites_and_then_the_first_stops(
    memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines are two cache folders."""
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "put_file", "train-000001", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _pack(rows)
    with monkeypatch.context() as other:
        other.setenv("UNFUSED_CACHE", str(tmp_path / "other"))
        with pytest.raises(UserError, match=r"bucket/set: .*@.* has been packing to it since .* --overwrite"):
            _pack(rows)
        with pytest.MonkeyPatch.context() as patch:
            _stop_at(memory, patch, "put_file", "train-000001", KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                _pack(rows, overwrite=True)
        with monkeypatch.context() as first:
            first.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
            with pytest.raises(UserError, match="has been packing to it since"):
                _pack(rows)
        _pack(rows)
    assert _remote(memory) == _bytes(packed.directory)


def test_writer_that_lost_the_set_to_another_stops(memory: Any, rows: list[SourceRow]) -> None:
    put = type(memory).put_file

    def taken(self: Any, local: str, path: str, **options: Any) -> None:
        put(self, local, path, **options)
        if "train-000001.tar" in path:
            claim = {"owner": "other", "by": "b@c", "since": "now"}
            self.pipe_file("/bucket/set/writing.json", json.dumps(claim).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", taken)
        with pytest.raises(UserError, match="not this command's any more, b@c has been packing to it since now"):
            _pack(rows)
    assert "train-000002.tar" not in _remote(memory) and "manifest.json" not in _remote(memory)


def test_nothing_usable_leaves_nothing(memory: Any, mixed: Any, cache: Path) -> None:
    silent = SourceRow(mixed.folder / "silent.wav", "silent.wav", None, "train", "x")
    with pytest.raises(UserError, match="nothing was written"):
        _pack([silent])
    assert _remote(memory) == {} and not list((cache / "packing").iterdir())


# Reading one


def test_copy_is_fetched_once_and_asked_for_with_one_request(
    s3: Any, rows: list[SourceRow], packed: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/read"
    _pack(rows, url)
    asked: list[tuple[str, str]] = []
    call = type(s3)._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        asked.append((method, str(options.get("Key", ""))))
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(type(s3), "_call_s3", counted)
    steps: list[tuple[int, int, int]] = []
    folder = local_set(url, progress=lambda *step: steps.append(step))
    assert _bytes(folder) == _bytes(packed.directory) and check(folder, workers=0).corrupt == []
    assert folder.name == "read" and open_shards(folder).manifest == packed.manifest
    assert steps[0] == (0, 14, 0) and steps[-1] == (14, 14, 0)
    fetched = [key for method, key in asked if method == "get_object" and "manifest" not in key]
    assert len(fetched) == len(set(fetched)) == 14
    asked.clear()
    assert local_set(url + "/") == folder
    assert asked == [("get_object", "read/manifest.json")]


def test_set_on_a_web_server_is_read(packed: ShardSet, tmp_path: Path) -> None:
    handler = partial(_Quiet, directory=str(packed.directory.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://me:hunter2@127.0.0.1:{server.server_port}"
        try:
            folder = local_set(f"{url}/packed")
            with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/nothing: holds no manifest.json"):
                local_set(f"{url}/nothing")
        finally:
            server.shutdown()
            thread.join()
    assert _bytes(folder) == _bytes(packed.directory)
    said: list[str] = []
    assert local_set(f"{url}/packed", say=said.append) == folder
    assert "cannot be asked" in said[0] and "hunter2" not in said[0] + str(folder)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keeps off the screen."""


def test_two_at_once_download_once(memory: Any, rows: list[SourceRow], monkeypatch: pytest.MonkeyPatch) -> None:
    _pack(rows)
    fetch, fetched, started, second_waits = RemoteSet.fetch, list[str](), threading.Event(), threading.Event()

    def slow(self: RemoteSet, name: str, path: Path) -> None:
        fetched.append(name)
        started.set()
        assert second_waits.wait(10)
        fetch(self, name, path)

    def heard(text: str) -> None:
        assert "waiting for another process" in text
        second_waits.set()

    monkeypatch.setattr(RemoteSet, "fetch", slow)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(local_set, URL)
        assert started.wait(10)
        assert local_set(URL, say=heard) == first.result()
    assert len(fetched) == 14


def test_changed_set_is_fetched_anew_and_the_old_copy_stays(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    _pack(rows[:9])
    old = local_set(URL)
    _pack(rows, overwrite=True)
    new = local_set(URL)
    assert new != old and _bytes(new) == _bytes(packed.directory) and check(old, workers=0).corrupt == []


def test_stopped_download_goes_on_with_what_is_missing(memory: Any, rows: list[SourceRow], packed: ShardSet) -> None:
    _pack(rows)
    with pytest.MonkeyPatch.context() as patch:
        before = _stop_at(memory, patch, "get_file", "train-000002", KeyboardInterrupt())
        patch.setattr("unfused_fast.shards.local_sets.DOWNLOADS", 1)
        with pytest.raises(KeyboardInterrupt):
            local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        after = _stop_at(memory, patch, "get_file", "nothing", KeyboardInterrupt())
        folder = local_set(URL)
    come = {name for name in before if "train-000002" not in name}
    assert come and len(after) == len(set(after)) == 14 - len(come) and not come & set(after)
    assert _bytes(folder) == _bytes(packed.directory)
    (folder / "train-000000.tar").unlink()
    with pytest.MonkeyPatch.context() as patch:
        after = _stop_at(memory, patch, "get_file", "nothing", KeyboardInterrupt())
        assert local_set(URL) == folder
    assert after == ["train-000000.tar"] and _bytes(folder) == _bytes(packed.directory)


def test_without_a_network_the_last_copy_is_used_and_that_is_said(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    _pack(rows)
    for known in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            _stop_at(memory, patch, "cat_file", "manifest.json", OSError("no route to host"))
            said: list[str] = []
            if known:
                assert _bytes(local_set(URL, say=said.append)) == _bytes(packed.directory)
                assert "cannot be asked whether it has changed (no route to host); the copy in" in said[0]
            else:
                with pytest.raises(UserError, match=r"bucket/set: cannot be read \(no route to host\)"):
                    local_set(URL)
        local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "cat_file", "manifest.json", PermissionError("Forbidden"))
        with pytest.raises(UserError, match=r"cannot be read \(Forbidden\)"):
            local_set(URL)


def test_what_is_no_set_or_a_damaged_one_is_refused(memory: Any, rows: list[SourceRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bucket/set: holds no manifest.json, .*unfused-fast shard SOURCE memory://"):
        local_set(URL)
    _pack(rows)
    files = _remote(memory)
    manifest = json.loads(files["manifest.json"])

    def refused(name: str, content: bytes | None, said: str) -> None:
        if content is None:
            memory.rm_file(f"/bucket/set/{name}")
        else:
            memory.pipe_file(f"/bucket/set/{name}", content)
        with pytest.raises(UserError, match=said):
            local_set(URL)
        memory.pipe_file(f"/bucket/set/{name}", files[name])

    refused("train-000001.tar", None, "train-000001.tar: missing, but manifest.json lists it")
    refused("manifest.json", b"{}", "^memory://bucket/set/manifest.json: schema version None")
    outside = {**manifest["splits"]["test"], "shards": ["../../../evil-0.tar"]}
    evil = json.dumps({**manifest, "splits": {**manifest["splits"], "test": outside}}).encode()
    refused("manifest.json", evil, r"bucket/set/manifest.json: .*evil-0.tar' is no name of a shard")
    other = json.dumps({**manifest, "digest": "0" * 64}).encode()
    refused("manifest.json", other, "clips.parquet: its digest is not the manifest's")
    assert not list(tmp_path.rglob("evil*"))
    assert check(local_set(URL), workers=0).corrupt == []


def test_set_that_changes_while_it_is_downloaded_is_refused(memory: Any, rows: list[SourceRow]) -> None:
    _pack(rows)
    fetch, changed = RemoteSet.fetch, list[str]()

    def changing(self: RemoteSet, name: str, path: Path) -> None:
        fetch(self, name, path)
        if not changed:
            changed.append(name)
            memory.rm_file("/bucket/set/manifest.json")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteSet, "fetch", changing)
        with pytest.raises(UserError, match="was changed while it was downloaded; give the same command again"):
            local_set(URL)


def test_file_that_goes_while_it_is_downloaded_is_a_change_of_the_set(memory: Any, rows: list[SourceRow]) -> None:
    _pack(rows)
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(memory, patch, "get_file", "train-000001.tar", FileNotFoundError("train-000001.tar"))
        with pytest.raises(
            UserError, match=r"^memory://bucket/set: was changed while it was downloaded; give the same"
        ):
            local_set(URL)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_that_refuses_a_download_is_not_asked_again(
    memory: Any, rows: list[SourceRow], cache: Path, number: int
) -> None:
    _pack(rows)
    with pytest.MonkeyPatch.context() as patch:
        calls = _stop_at(memory, patch, "get_file", "train-000001.tar", OSError(number, os.strerror(number)))
        with pytest.raises(UserError, match=rf"{cache}/sets/.*: cannot be written \({os.strerror(number)}\); mend"):
            local_set(URL)
    assert calls.count("train-000001.tar") == 1


def test_too_small_a_disk_is_noticed_before_the_download(
    memory: Any, rows: list[SourceRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pack(rows)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.local_sets.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.00 GB are to be downloaded, .* set UNFUSED_CACHE"):
        local_set(URL)


def test_cache_that_cannot_be_written_is_named(
    memory: Any, rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pack(rows[:9])
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/sets/.*: cannot be written \(Not a directory\); .* UNFUSED_CACHE"):
        local_set(URL)
