"""`embed` of what is behind URLs: a folder, whatever its name, a recording, a shard set, and what is none of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unfused_fast
from unfused_fast.embedding.files import embed_files
from unfused_fast.embedding.sources import embed_rows
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's file system in memory, empty, and an empty cache folder."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    system = pytest.importorskip("fsspec", reason="needs the extra `remote`").filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def sources(given: str) -> list[str]:
    return [row.source for row in embed_rows([given], print)]


@pytest.mark.parametrize("name", ["audio", "audio-v1.0"])
def test_a_remote_folder_is_the_local_one(
    memory: Any, pretrained: Path, tone_rows: list[SourceRow], tmp_path: Path, name: str
) -> None:
    paths = [Path(str(row.path)) for row in tone_rows[:3]]
    for number, path in enumerate(paths):
        memory.pipe_file(f"/bucket/{name}/deep/{number}.wav", path.read_bytes())
    url, embedder = f"memory://bucket/{name}", unfused_fast.load(pretrained, device="cpu")
    wanted = [f"{url}/deep/{number}.wav" for number in range(3)]
    assert sources(url) == sources(url + "/") == wanted and sources(wanted[1]) == [wanted[1]]
    embed_files(embedder, embed_rows([url], print), tmp_path / "there.npz", workers=0)
    embed_files(embedder, embed_rows([str(path) for path in paths], print), tmp_path / "here.npz", workers=0)
    with np.load(tmp_path / "there.npz") as there, np.load(tmp_path / "here.npz") as here:
        assert np.array_equal(there["embeddings"], here["embeddings"]) and list(there["path"]) == wanted


@pytest.mark.parametrize("name", ["set", "set-v1.0"])
def test_a_remote_shard_set_gives_its_clips(memory: Any, tones: Path, name: str) -> None:
    for path in filter(Path.is_file, tones.iterdir()):
        memory.pipe_file(f"/bucket/{name}/{path.name}", path.read_bytes())
    assert sources(f"memory://bucket/{name}") == open_shards(tones).clips["source"].to_pylist()


def test_what_is_not_there_or_unfinished_is_said(memory: Any) -> None:
    with pytest.raises(UserError, match=r"memory://bucket/v1\.0: .*(no files|cannot be listed)"):
        sources("memory://bucket/v1.0")
    memory.pipe_file("/bucket/set/writing.json", b'{"owner": "1", "by": "someone", "since": "2026"}')
    with pytest.raises(UserError, match="unfinished, someone has been packing"):
        sources("memory://bucket/set")
