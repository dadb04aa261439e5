"""Sets behind URLs brought to this machine: fetched once, gone on with, refused."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from remote_files import URL, bytes_of, pack_remote, remote_bytes, served, stop_at

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing.download import local_set
from unfused_fast.shards.packing.upload import RemoteSet
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow

pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


def test_copy_is_fetched_once_and_asked_for_with_one_request(
    s3: Any, rows: list[SourceRow], packed: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/read"
    pack_remote(rows, url)
    asked: list[tuple[str, str]] = []
    call = type(s3)._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        asked.append((method, str(options.get("Key", ""))))
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(type(s3), "_call_s3", counted)
    steps: list[tuple[int, int, int]] = []
    folder = local_set(url, progress=lambda *step: steps.append(step))
    assert bytes_of(folder) == bytes_of(packed.directory) and check(folder, workers=0).corrupt == []
    assert folder.name == "read" and open_shards(folder).manifest == packed.manifest
    assert steps[0] == (0, 14, 0) and steps[-1] == (14, 14, 0)
    fetched = [key for method, key in asked if method == "get_object" and "manifest" not in key]
    assert len(fetched) == len(set(fetched)) == 14
    asked.clear()
    assert local_set(url + "/") == folder
    assert asked == [("get_object", "read/manifest.json")]


def test_set_on_a_web_server_is_read(packed: ShardSet, tmp_path: Path) -> None:
    with served(packed.directory.parent, "me:hunter2") as url:
        folder = local_set(f"{url}/packed")
        with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/nothing: holds no manifest.json"):
            local_set(f"{url}/nothing")
    assert bytes_of(folder) == bytes_of(packed.directory)
    said: list[str] = []
    assert local_set(f"{url}/packed", say=said.append) == folder
    assert "cannot be asked" in said[0] and "hunter2" not in said[0] + str(folder)


def test_two_at_once_download_once(memory: Any, rows: list[SourceRow], monkeypatch: pytest.MonkeyPatch) -> None:
    pack_remote(rows)
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
    pack_remote(rows[:9])
    old = local_set(URL)
    pack_remote(rows, overwrite=True)
    new = local_set(URL)
    assert new != old and bytes_of(new) == bytes_of(packed.directory) and check(old, workers=0).corrupt == []


def test_stopped_download_goes_on_with_what_is_missing(memory: Any, rows: list[SourceRow], packed: ShardSet) -> None:
    pack_remote(rows)
    with pytest.MonkeyPatch.context() as patch:
        before = stop_at(memory, patch, "get_file", "train-000002", KeyboardInterrupt())
        patch.setattr("unfused_fast.shards.packing.download.DOWNLOADS", 1)
        with pytest.raises(KeyboardInterrupt):
            local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        after = stop_at(memory, patch, "get_file", "nothing", KeyboardInterrupt())
        folder = local_set(URL)
    come = {name for name in before if "train-000002" not in name}
    assert come and len(after) == len(set(after)) == 14 - len(come) and not come & set(after)
    assert bytes_of(folder) == bytes_of(packed.directory)
    (folder / "train-000000.tar").unlink()
    with pytest.MonkeyPatch.context() as patch:
        after = stop_at(memory, patch, "get_file", "nothing", KeyboardInterrupt())
        assert local_set(URL) == folder
    assert after == ["train-000000.tar"] and bytes_of(folder) == bytes_of(packed.directory)


def test_without_a_network_the_last_copy_is_used_and_that_is_said(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    pack_remote(rows)
    for known in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(memory, patch, "cat_file", "manifest.json", OSError("no route to host"))
            said: list[str] = []
            if known:
                assert bytes_of(local_set(URL, say=said.append)) == bytes_of(packed.directory)
                assert "cannot be asked whether it has changed (no route to host); the copy in" in said[0]
            else:
                with pytest.raises(UserError, match=r"bucket/set: cannot be read \(no route to host\)"):
                    local_set(URL)
        local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(memory, patch, "cat_file", "manifest.json", PermissionError("Forbidden"))
        with pytest.raises(UserError, match=r"cannot be read \(Forbidden\)"):
            local_set(URL)


def test_what_is_no_set_or_a_damaged_one_is_refused(memory: Any, rows: list[SourceRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bucket/set: holds no manifest.json, .*unfused-fast shard SOURCE memory://"):
        local_set(URL)
    pack_remote(rows)
    files = remote_bytes(memory)
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
    pack_remote(rows)
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
    pack_remote(rows)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(memory, patch, "get_file", "train-000001.tar", FileNotFoundError("train-000001.tar"))
        with pytest.raises(
            UserError, match=r"^memory://bucket/set: was changed while it was downloaded; give the same"
        ):
            local_set(URL)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_that_refuses_a_download_is_not_asked_again(
    memory: Any, rows: list[SourceRow], cache: Path, number: int
) -> None:
    pack_remote(rows)
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(memory, patch, "get_file", "train-000001.tar", OSError(number, os.strerror(number)))
        with pytest.raises(UserError, match=rf"{cache}/sets/.*: cannot be written \({os.strerror(number)}\); mend"):
            local_set(URL)
    assert calls.count("train-000001.tar") == 1


def test_too_small_a_disk_is_noticed_before_the_download(
    memory: Any, rows: list[SourceRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_remote(rows)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("unfused_fast.shards.packing.download.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.00 GB are to be downloaded, .* set UNFUSED_CACHE"):
        local_set(URL)


def test_cache_that_cannot_be_written_is_named(
    memory: Any, rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_remote(rows[:9])
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/sets/.*: cannot be written \(Not a directory\); .* UNFUSED_CACHE"):
        local_set(URL)
