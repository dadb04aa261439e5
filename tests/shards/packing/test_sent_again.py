"""Sets that were stopped, at a URL or here: what changed since then is made, numbered and sent again, no more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_files import URL, bytes_of, pack_remote, remote_bytes, stop_at, stopped_remote

from unfused_fast.errors import Interrupted, UserError
from unfused_fast.shards.packing import finish as finishing
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.download import local_set
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow

pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("method", "stopped_at", "changed"),
    [
        ("put_file", "train-000001.idx", ""),
        ("put_file", "valid-000000.tar", ""),
        ("put_file", "test-000000.tar", "train-000001.idx"),
        ("put_file", "clips.parquet", ""),
        ("put_file", "manifest.json", "valid-000000.tar"),
        ("rm_file", "writing.json", ""),
        ("rm_file", "writing.json", "writing.json"),
    ],
)
def test_a_stopped_upload_is_resumed(
    memory: Any, rows: list[SourceRow], packed: ShardSet, cache: Path, method: str, stopped_at: str, changed: str
) -> None:
    """What changed or went there in the meantime is made and sent again, and nothing else."""
    before = stopped_remote(memory, rows, method, stopped_at)
    sent = {name for name in before[:-1] if name.endswith(".tar") and name[:-4] not in (stopped_at[:-4], changed[:-4])}
    if stopped_at != "writing.json":
        with pytest.raises(UserError, match=r"set: unfinished, .*@.* has been packing to it since .*; wait for it, or"):
            local_set(URL)
    if changed.endswith(".tar"):
        memory.pipe_file(f"/bucket/set/{changed}", b"half")
    elif changed:
        memory.rm_file(f"/bucket/set/{changed}")
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(memory, patch, "put_file", "nothing", KeyboardInterrupt())
        resumed = pack_remote(rows)
    assert not sent & set(calls) and resumed.shards_made <= 6 - len(sent)
    assert remote_bytes(memory) == bytes_of(packed.directory) and not list((cache / "packing").iterdir())


def test_a_shard_that_is_replaced_while_others_are_made(memory: Any, rows: list[SourceRow], packed: ShardSet) -> None:
    """As by another machine that began at the same time, and had a file on its way."""
    put = type(memory).put_file

    def replaced(self: Any, local: str, path: str, **options: Any) -> None:
        put(self, local, path, **options)
        if "valid-000000.idx" in path:
            self.pipe_file("/bucket/set/train-000001.tar", b"of another set")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", replaced)
        with pytest.raises(
            UserError, match=r"set: train-000001.tar: deleted or replaced since being sent \(1 of 12 fi"
        ):
            pack_remote(rows)
    assert "manifest.json" not in remote_bytes(memory)
    pack_remote(rows)
    assert remote_bytes(memory) == bytes_of(packed.directory)


def test_a_shard_is_sent_again_when_its_part_has_changed(
    memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path
) -> None:
    """Also after one more stop."""
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, 1):
        pack(rows, part, part=(number, 2), clips_per_shard=10, workers=0)
    shutil.copytree(parts[0], tmp_path / "sound")
    tar = parts[0] / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[5000:5100] = bytes(100)
    tar.write_bytes(data)
    for stopped_at in ("valid-000000.tar", "train-000000.tar"):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(memory, patch, "put_file", stopped_at, KeyboardInterrupt())
            with pytest.raises(Interrupted, match="stopped; run the same command again to continue"):
                merge(parts, URL)
        shutil.copytree(tmp_path / "sound", parts[0], dirs_exist_ok=True)
    merge(parts, URL)
    assert remote_bytes(memory) == bytes_of(packed.directory)


def _copied(rows: list[SourceRow], folder: Path) -> list[SourceRow]:
    folder.mkdir()
    return [replace(row, path=Path(shutil.copy(str(row.path), folder / row.source))) for row in rows]


def _spoil(row: SourceRow) -> None:
    assert isinstance(row.path, Path)
    soundfile.write(row.path, np.full(soundfile.info(row.path).frames, np.nan), 16000, "FLOAT", format="WAV")


def test_shards_are_sent_again_when_one_before_them_had_no_clips(
    memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path
) -> None:
    """They were sent with other ids."""
    first = set(packed.clips["source"][:10].to_pylist())
    parts, broken = [tmp_path / str(number) for number in range(9)], _copied(rows, tmp_path / "broken")
    for row in broken:
        if row.source in first:
            _spoil(row)
    for number, part in enumerate(parts, 1):
        pack(broken, part, part=(number, 9), clips_per_shard=10, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(memory, patch, "put_file", "clips.parquet", KeyboardInterrupt())
        with pytest.raises(Interrupted, match="stopped; run the same command again to continue"):
            merge(parts, URL)
    pack(rows, parts[1], part=(2, 9), clips_per_shard=10, workers=0, overwrite=True)
    assert [path.stem for path in parts[1].glob("*.tar")] == ["train-000000"]
    assert merge(parts, URL).packed == 45
    assert remote_bytes(memory) == bytes_of(packed.directory)


def test_a_shard_that_lost_all_clips_leaves_no_file(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    first = set(packed.clips["source"][:10].to_pylist())
    parts, broken = [tmp_path / "1", tmp_path / "2"], _copied(rows, tmp_path / "broken")
    for number, part in enumerate(parts, 1):
        pack(broken, part, part=(number, 2), clips_per_shard=10, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing.Assembly, "finish", lambda *rest: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge(parts, tmp_path / "out")
    for row in broken:
        if row.source in first:
            _spoil(row)
    pack(broken, parts[0], part=(1, 2), clips_per_shard=10, workers=0, overwrite=True)
    merge(parts, tmp_path / "out")
    pack(broken, tmp_path / "whole", clips_per_shard=10, workers=0)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_shard_that_is_made_again_with_fewer_clips(
    memory: Any, rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those behind it have other ids then, and are made again too."""
    monkeypatch.setattr(finishing, "STATISTICS_CLIPS", 0)
    sources = _copied(rows, tmp_path / "sources")
    stopped_remote(memory, sources, "put_file", "valid-000000.tar")
    memory.rm_file("/bucket/set/train-000000.tar")
    _spoil(next(row for row in sources if row.source == packed.clips["source"][3].as_py()))
    with pytest.raises(
        UserError, match=r"set: train-000001.tar was sent with other clip ids, .*; run the same command"
    ):
        pack_remote(sources)
    assert pack_remote(sources).packed == 44
    pack(sources, tmp_path / "whole", clips_per_shard=10, workers=0)
    assert remote_bytes(memory) == bytes_of(tmp_path / "whole")
