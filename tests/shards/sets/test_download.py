"""Sets behind URLs brought to this machine: fetched once, resumed, refused."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from remote_files import URL, bytes_of, pack_remote, remote_bytes, served, stop_at

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.sets.download import local_set
from unfused_fast.shards.sets.remote_folder import RemoteFolder
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
    folder = local_set(url)
    assert bytes_of(folder) == bytes_of(packed.directory) and check(folder, workers=0).corrupt == []
    assert folder.name == "read" and open_shards(folder).manifest == packed.manifest
    fetched = [key for method, key in asked if method == "get_object" and "manifest" not in key]
    assert len(fetched) == len(set(fetched)) == 14
    asked.clear()
    assert local_set(url + "/") == folder
    assert asked == [("get_object", "read/manifest.json")]


def test_set_on_a_web_server_is_read(packed: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "www/lacking").mkdir(parents=True)
    (tmp_path / "www/packed").symlink_to(packed.directory)
    (tmp_path / "www/lacking/manifest.json").symlink_to(packed.directory / "manifest.json")
    with served(tmp_path / "www") as server:
        url = server.url.replace("//", "//me:hunter2@")
        assert bytes_of(local_set(f"{url}/packed")) == bytes_of(packed.directory)
        with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/nothing: holds no manifest.json"):
            local_set(f"{url}/nothing")
        with pytest.raises(UserError, match=r"/lacking: .*: missing, but manifest.json lists it"):
            local_set(f"{url}/lacking")
    with pytest.raises(UserError, match=r"/packed: the server failed") as raised:
        local_set(f"{url}/packed")
    assert "hunter2" not in str(raised.value)


def test_two_at_once_download_once(memory: Any, rows: list[SourceRow], monkeypatch: pytest.MonkeyPatch) -> None:
    pack_remote(rows)
    fetch, fetched, started, second_waits = RemoteFolder.fetch, list[str](), threading.Event(), threading.Event()

    def slow(self: RemoteFolder, name: str, path: Path) -> None:
        fetched.append(name)
        started.set()
        assert second_waits.wait(10)
        fetch(self, name, path)

    def heard(text: str) -> None:
        assert "waiting for another process" in text
        second_waits.set()

    monkeypatch.setattr(RemoteFolder, "fetch", slow)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(local_set, URL)
        assert started.wait(10)
        assert local_set(URL, on_message=heard) == first.result()
    assert len(fetched) == 14


def test_stopped_download_resumes_with_what_is_missing(memory: Any, rows: list[SourceRow], packed: ShardSet) -> None:
    pack_remote(rows)
    with pytest.MonkeyPatch.context() as patch:
        before = stop_at(memory, patch, "get_file", "train-000002", KeyboardInterrupt())
        patch.setattr("unfused_fast.shards.sets.download.DOWNLOADS", 1)
        with pytest.raises(KeyboardInterrupt):
            local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        after = stop_at(memory, patch, "get_file", "nothing", KeyboardInterrupt())
        folder = local_set(URL)
        come = {name for name in before if "train-000002" not in name}
        assert come and len(after) == len(set(after)) == 14 - len(come) and not come & set(after)
        assert bytes_of(folder) == bytes_of(packed.directory)
        (folder / "train-000000.tar").unlink()
        after.clear()
        assert local_set(URL) == folder
        assert after == ["train-000000.tar"] and bytes_of(folder) == bytes_of(packed.directory)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-000001.tar", None, "train-000001.tar: missing, but manifest.json lists it"),
        ("manifest.json", b"{}", "^memory://bucket/set/manifest.json: .*its schema version is None"),
        (
            "manifest.json",
            ("train-000000.tar", "../../../evil-0.tar"),
            r"bucket/set/manifest.json: .* is not the name of a",
        ),
        ("manifest.json", ('"digest": "', '"digest": "0'), "clips.parquet: its digest does not match the manifest"),
    ],
)
def test_damaged_set_is_refused(
    memory: Any, rows: list[SourceRow], tmp_path: Path, name: str, content: bytes | tuple[str, str] | None, said: str
) -> None:
    pack_remote(rows)
    whole = remote_bytes(memory)[name]
    memory.rm_file(f"/bucket/set/{name}")
    if content is not None:
        changed = content if isinstance(content, bytes) else whole.decode().replace(*content).encode()
        assert changed != whole
        memory.pipe_file(f"/bucket/set/{name}", changed)
    with pytest.raises(UserError, match=said):
        local_set(URL)
    assert not list(tmp_path.rglob("evil*"))
    memory.pipe_file(f"/bucket/set/{name}", whole)
    assert check(local_set(URL), workers=0).corrupt == []


def test_what_is_no_set_or_cannot_be_read_is_refused(memory: Any, rows: list[SourceRow]) -> None:
    with pytest.raises(UserError, match=r"bucket/set: holds no manifest.json, .*unfused-fast shard SOURCE memory://"):
        local_set(URL)
    pack_remote(rows)
    for error, said in (
        (OSError("no route to host"), r"the server failed 4 times \(no route to host\)"),
        (PermissionError("Forbidden"), r"cannot be read \(Forbidden\)"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(memory, patch, "cat_file", "manifest.json", error)
            with pytest.raises(UserError, match=rf"bucket/set: {said}") as raised:
                local_set(URL)
            assert "copy" not in str(raised.value)


def test_changed_set_is_fetched_anew_and_a_server_that_does_not_answer_leaves_the_last_copy(
    memory: Any, rows: list[SourceRow], packed: ShardSet
) -> None:
    pack_remote(rows[:9])
    old = local_set(URL)
    pack_remote(rows, overwrite=True)
    new = local_set(URL)
    assert new != old and bytes_of(new) == bytes_of(packed.directory) and check(old, workers=0).corrupt == []
    for error in (OSError("no route to host"), PermissionError("Forbidden")):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(memory, patch, "cat_file", "manifest.json", error)
            with pytest.raises(UserError) as raised:
                local_set(URL)
        assert str(raised.value).endswith(f"which may be old: {new}")


@pytest.mark.parametrize("new", [None, b"{}"])
def test_set_that_changes_while_it_is_downloaded_is_refused(
    memory: Any, rows: list[SourceRow], new: bytes | None
) -> None:
    pack_remote(rows)
    fetch = RemoteFolder.fetch

    def changing(self: RemoteFolder, name: str, path: Path) -> None:
        fetch(self, name, path)
        if name == "clips.parquet":
            memory.rm_file("/bucket/set/manifest.json")
            if new is not None:
                memory.pipe_file("/bucket/set/manifest.json", new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFolder, "fetch", changing)
        with pytest.raises(UserError, match="changed during the download; run the same command again"):
            local_set(URL)


def test_a_full_disk_is_noticed_before_the_download_or_not_asked_again(
    memory: Any, rows: list[SourceRow], cache: Path
) -> None:
    pack_remote(rows)
    with pytest.MonkeyPatch.context() as patch:
        usage = type("usage", (), {"free": 1000})
        patch.setattr("unfused_fast.shards.sets.download.shutil.disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"\d [kM]B must be downloaded, .* set UNFUSED_CACHE"):
            local_set(URL)
    with pytest.MonkeyPatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left")
        calls = stop_at(memory, patch, "get_file", "train-000001.tar", full)
        with pytest.raises(UserError, match=rf"{cache}/sets/.*: cannot be written \(No space left\); fix"):
            local_set(URL)
    assert calls.count("train-000001.tar") == 1
