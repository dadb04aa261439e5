"""What the tests of `explore` share: a set with names that are hard to show, a page of it, a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outcomes import Cli

from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow

LABELS = {
    "low": "日本語の音",
    "middle": '<script>window.broken = 1</script><img src=x onerror="window.broken = 1">',
    "high": None,
}
"""Class of the tones -> label; None: the clip has none."""


@pytest.fixture(scope="session")
def named(tone_rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tones, with LABELS, in files named likewise; each is its own group."""
    rows = [SourceRow(row.path, f"音 <b>&/{row.source}", LABELS[str(row.label)], row.split) for row in tone_rows]
    return pack(rows, tmp_path_factory.mktemp("sets") / "named", workers=0, clips_per_shard=40).shard_set


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Embeddings are kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("UNFUSED_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def page(cli: Cli, named: ShardSet, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `named`: a folder not to be written to."""
    out = tmp_path_factory.mktemp("pages") / "page"
    done = cli("explore", named.directory, "--encoder", pretrained, "--out", out, "--map", "pca", "--device", "cpu")
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def kept_rows(cli: Cli, named: ShardSet, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(96, D) embeddings of `named`, by `embed`."""
    out = tmp_path_factory.mktemp("rows") / "all.npz"
    assert cli("embed", named.directory, "--encoder", pretrained, "--out", out, "--device", "cpu").code == 0
    with np.load(out) as archive:
        return archive["embeddings"]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here; on Debian and Ubuntu: apt install chromium")
    return found
