"""Sources behind URLs: servers with and without ranges, that fail now and then, and an S3 of this machine."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_files import contents_of, make_tar, make_zip, read_row
from remote_files import Server, served

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import probe
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources import reader, remote
from unfused_fast.shards.sources.location import ByteLocation
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows

pytest.importorskip("aiohttp", reason="needs the extra `remote`")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with served(tmp_path / "www") as server:
        yield server


def _copies(rows: list[SourceRow], folder: Path, number: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows[:number]:
        assert isinstance(row.path, Path)
        (folder / f"ü {row.source}").write_bytes(row.path.read_bytes())
    return folder


def _digest(rows: list[SourceRow], out: Path, workers: int = 0) -> str:
    result = pack(rows, out, workers=workers)
    assert (result.packed, result.rejected) == (5, {})
    return result.shard_set.manifest.digest


def test_folder_archive_and_csv_of_a_server_pack_to_one_digest(
    server: Server, rows: list[SourceRow], tmp_path: Path
) -> None:
    folder = _copies(rows, tmp_path / "www/audio")
    make_zip(tmp_path / "www/audio.zip", contents_of(folder))
    names = [path.name for path in folder.iterdir()]
    (tmp_path / "www/audio/list.csv").write_text("\n".join(["path", *names]))
    (tmp_path / "here.csv").write_text("\n".join(["path", *(f"{server.url}/audio/{name}" for name in names)]))
    plain = _digest([row for row in source_rows(folder) if row.source != "list.csv"], tmp_path / "plain")
    listed = source_rows(f"{server.url}/audio/list.csv")
    assert _digest(listed, tmp_path / "a") == plain
    assert _digest(source_rows(f"{server.url}/audio.zip"), tmp_path / "b", workers=2) == plain
    found = source_rows(f"{server.url}/audio")
    assert _digest([row for row in found if row.source != "list.csv"], tmp_path / "c") == plain
    elsewhere = source_rows(tmp_path / "here.csv")
    assert {row.source for row in elsewhere} == {f"127.0.0.1:{server.server_port}/audio/{name}" for name in names}
    assert sorted(map(read_row, elsewhere)) == sorted(map(read_row, listed))
    assert source_rows(folder.as_uri()) == source_rows(folder)


def test_of_a_large_archive_only_parts_are_fetched(server: Server, tmp_path: Path) -> None:
    make_zip(tmp_path / "www/a.zip", {"large.bin": os.urandom(8 << 20), "small.wav": b"small"}, zipfile.ZIP_STORED)
    (row,) = (row for row in source_rows(f"{server.url}/a.zip") if row.source == "small.wav")
    assert read_row(row) == b"small"
    assert server.sent < 2 << 20


def test_server_without_ranges_is_read_whole_and_that_is_said(
    server: Server, rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ranges = False
    folder = _copies(rows, tmp_path / "audio")
    (folder / "large.bin").write_bytes(os.urandom(2 * remote.BLOCK_BYTES))
    path = make_zip(tmp_path / "www/a.zip", contents_of(folder))
    said: list[str] = []
    assert sorted(map(read_row, source_rows(f"{server.url}/a.zip", note=said.append))) == sorted(
        file.read_bytes() for file in folder.iterdir()
    )
    assert any("gives no ranges" in text for text in said)
    monkeypatch.setattr(remote, "WHOLE_BYTES", path.stat().st_size - 1)
    path.rename(tmp_path / "www/b.zip")
    with pytest.raises(UserError, match=r"does not support HTTP range requests.* download it first"):
        source_rows(f"{server.url}/b.zip")


def test_passing_failures_are_tried_again(
    server: Server, rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    folder = _copies(rows, tmp_path / "www/audio", 1)
    place = ByteLocation((f"{server.url}/audio/" + next(folder.iterdir()).name,))
    server.failures = 2
    assert probe(place) == probe(next(folder.iterdir()))
    assert waits == [0.25, 0.5]
    server.server_close()
    with pytest.raises(UserError, match=r"a\.zip: the server failed .*[Cc]onnect.* again to continue"):
        source_rows(f"{server.url}/a.zip")
    assert waits[2:] == list(remote.WAITS_SECONDS)


NO_ANSWER = r"^http://127.0.0.1:\d+/[^?]*: the server failed .*the server answers 503.* again to continue"


def test_failures_that_last_end_the_pack_and_reject_nothing(
    server: Server, rows: list[SourceRow], tmp_path: Path
) -> None:
    """What is not there, or may not be had, is rejected; what may be had tomorrow is not."""
    folder, out = _copies(rows, tmp_path / "www/audio", 7), tmp_path / "out"
    gone, locked, *_ = sorted(folder.iterdir())
    found = source_rows(f"{server.url}/audio")
    gone.unlink()
    server.forbidden = locked.name
    server.spared, server.failures = 3, 1000
    with pytest.raises(UserError, match=NO_ANSWER):
        pack(found, out, workers=1)
    assert server.failures < 1000 and not out.exists()
    server.failures = 0
    assert pack(found, out, workers=1).packed == 5
    rejected = (out / "rejected.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert rejected == [
        f"{gone.name},unreadable: no such file",
        f"{locked.name},unreadable: the server answers 403 Forbidden",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_failures_that_last_are_none_of_the_archive(
    server: Server, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[SourceRow]
) -> None:
    """When it is listed, and when a member is read, through libsndfile and through the inflater."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    path, folder = tmp_path / f"www/a.{kind}", _copies(rows, tmp_path / "audio", 1)
    (folder / "noise.bin").write_bytes(os.urandom(8 * remote.BLOCK_BYTES))
    if kind == "zip":
        make_zip(path, contents_of(folder))
    else:
        make_tar(path, folder, "w:gz")
    url = f"{server.url}/{path.name}"
    (row,) = (row for row in source_rows(url) if row.source.endswith(".wav"))
    reader._opened.cache_clear()
    reader._inflated.cache_clear()
    server.failures = 1000
    with pytest.raises(UserError, match=NO_ANSWER):
        probe(row.path)
    with pytest.raises(UserError, match=NO_ANSWER):
        source_rows(url)


def test_missing_package_of_a_listed_file_ends_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("path\ns3://bucket/a.wav\n")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"s3://bucket/a.wav needs .* pip install '\.\[remote\]'"):
        pack(source_rows(tmp_path / "list.csv"), tmp_path / "out", workers=0)


def test_what_is_not_on_the_server(server: Server) -> None:
    with pytest.raises(Rejected, match=r"^unreadable: no such file$"):
        probe(ByteLocation((f"{server.url}/gone.wav",)))
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read: no such file"):
        source_rows(f"{server.url}/gone.csv")
    with pytest.raises(UserError, match=r"gone\.zip: not readable as an archive: no such file"):
        source_rows(f"{server.url}/gone.zip")
    with pytest.raises(UserError, match="gone"):
        source_rows(f"{server.url}/gone/")
    with pytest.raises(UserError, match="zzz://bucket/x: Protocol not known"):
        source_rows("zzz://bucket/x")


def test_s3_folder_archive_and_csv_pack_to_the_digest_of_the_files(
    s3: Any, rows: list[SourceRow], tmp_path: Path
) -> None:
    folder = _copies(rows, tmp_path / "audio")
    path = make_zip(tmp_path / "a.zip", contents_of(folder), zipfile.ZIP_STORED)
    s3.put(str(path), "bucket/a.zip")
    s3.put(f"{folder}/", "bucket/set/", recursive=True)
    names = [path.name for path in folder.iterdir()]
    s3.pipe_file("bucket/set/list.csv", "\n".join(["path", *names]).encode())
    plain = _digest(source_rows(folder), tmp_path / "plain")
    assert _digest(source_rows("s3://bucket/a.zip"), tmp_path / "a") == plain
    assert _digest(source_rows("s3://bucket/set/list.csv"), tmp_path / "b") == plain
    s3.rm("bucket/set/list.csv")
    assert _digest(source_rows("s3://bucket/set"), tmp_path / "c") == plain
    with pytest.raises(UserError, match="s3://bucket/nothing: "):
        source_rows("s3://bucket/nothing")
