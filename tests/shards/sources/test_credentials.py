"""User, password and signature of a URL stay out of everything that is printed or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from archive_files import make_zip
from remote_files import served

from unfused_fast.shards.audio.decode import probe
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.location import ByteLocation, display_name, without_secrets
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow

fsspec = pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytest.importorskip("aiohttp", reason="needs the extra `remote`")
SECRET = "hunter2"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server of the folder www, with user and password."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    with served(tmp_path / "www") as server:
        yield server.url.replace("//", f"//me:{SECRET}@")


@pytest.mark.parametrize("given", ["me:hunter2@", "me:hunt@hunter2@", "hunter2@"])
def test_display_names(given: str) -> None:
    assert without_secrets(f"s3://{given}bucket/a@b/c?hunter2=hunter2 and more") == "s3://bucket/a@b/c and more"
    assert [display_name(path) for path in ("what?/a@b", Path("what?"))] == ["what?/a@b", "what?"]


def test_a_source_with_a_password(url: str, cli: Callable[..., Any], write_tone: Any, tmp_path: Path) -> None:
    """Of three archives two hold different files of one name, and one holds what is next to it too, or a folder."""
    www = tmp_path / "www"
    for number, rate in enumerate((8000, 16000)):
        soundfile.write(tmp_path / "a.wav", write_tone(0.5, rate, 300), rate)
        make_zip(www / f"{number}.zip", {"a.wav": (tmp_path / "a.wav").read_bytes(), "../up.wav": b"x"})
    (www / "top.wav").write_text("another")
    (www / "b").mkdir()
    (www / "b/b.wav").write_text("no audio")
    make_zip(www / "2.zip", {"top.wav": b"x", "b": b"x", "b.wav/c.wav": b"x"})
    for flags in ([], ["--json"]):
        out = tmp_path / f"out{len(flags)}"
        done = cli("shard", f"{url}/", out, "--workers", 1, *flags)
        assert done.code == 0, done.err
        written = "".join((out / name).read_text(encoding="utf-8") for name in ("rejected.csv", "manifest.json"))
        assert SECRET not in done.out + done.err + written
        assert "2.zip" not in written  # what is unpacked next to it counts


def test_errors_of_a_source_with_a_password(url: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    for words in (
        ["gone.zip"],
        [f"gone.zip?X-Signature={SECRET}"],
        ["gone.csv"],
        ["gone.csv", "--dataset", "csv"],
        ["gone/", "--dataset", "folder"],
        ["gone/", "--dataset", "nsynth"],
    ):
        done = cli("shard", f"{url}/{words[0]}", tmp_path / "out", *words[1:])
        assert done.code == 1 and "gone" in done.error and SECRET not in done.out + done.err, words
    with pytest.raises(Rejected) as rejected:
        probe(ByteLocation((f"{url}/gone.wav?X-Signature={SECRET}",)))
    assert SECRET not in str(rejected.value)
    (tmp_path / "a.wav").touch()
    done = cli("shard", tmp_path, f"{url}/out", "--part", "1/1")
    assert done.code == 1 and "/out" in done.error and SECRET not in done.out + done.err


@pytest.mark.parametrize("command", ["check", "peek"])
def test_a_set_with_a_password(
    url: str, cli: Callable[..., Any], packed: ShardSet, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "www/set").symlink_to(packed.directory)
    monkeypatch.chdir(tmp_path)  # peek writes its sheet here
    plain = url.replace(f"me:{SECRET}@", "") + "/set"
    for flags in ([], ["--json"]):
        done = cli(command, f"{url}/set", *flags)
        assert done.code == 0 and plain in done.out and SECRET not in done.out + done.err, done.err


def test_a_set_made_at_a_url_with_a_password(cli: Callable[..., Any], rows: list[SourceRow], url: str) -> None:
    assert isinstance(rows[0].path, Path)
    memory = fsspec.filesystem("memory")
    for flags in (["--json"], ["--resume"], []):
        done = cli("shard", rows[0].path.parent, f"memory://me:{SECRET}@bucket/set", "--workers", 1, *flags)
        assert SECRET not in done.out + done.err
        assert "memory://bucket/set" in done.out + done.err and done.code == (not flags)
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
