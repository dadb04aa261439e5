"""Tiny real files for miniatures of published layouts."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from miniatures import BUILDERS

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.sources.listed_path import ListedPath
from unfused_fast.shards.sources.listing import is_clutter, list_source
from unfused_fast.shards.sources.location import Folder


@pytest.fixture
def wav() -> Callable[..., None]:
    """`wav(path, rate=16000, channels=1, subtype="PCM_16")` writes 0.2 s of noise, no two files alike."""

    def write(path: Path, rate: int = 16000, channels: int = 1, subtype: str = "PCM_16") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(path.as_posix().encode())).uniform(-0.5, 0.5, (rate // 5, channels))
        soundfile.write(path, noise, rate, subtype)

    return write


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of an adapter -> its data set in miniature, made once; not to be written to."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            BUILDERS[name](made[name])
        return made[name]

    return of


@pytest.fixture
def miniature(whole: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Name -> a copy of its miniature, whose files are links: they are replaced, not written to."""
    return lambda name: Path(shutil.copytree(whole(name), tmp_path / name, copy_function=os.link))


def in_a_tar(root: Path, tar: Path) -> Folder | None:
    """The folder as an archive of it is shown to adapters; None where it holds what no archive shows: links, archives,
    and folders without a file.
    """
    if not root.is_dir():
        return None
    with tarfile.open(tar, "w", errors="surrogateescape") as archive:
        for path in root.rglob("*"):
            empty = path.is_dir() and all(is_clutter(each.name) for each in path.iterdir())
            if empty or path.is_symlink() or path.suffix in (".zip", ".tar", ".gz", ".tgz"):
                return None
            if path.is_file():
                archive.add(path, path.relative_to(root).as_posix())
    listing = list_source(tar)
    listing.title = str(root)
    return cast(Folder, ListedPath(listing))


@pytest.fixture(autouse=True)
def _in_archives_too(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each answer of an adapter in these tests, an error among them, is the same for a folder in an archive."""

    discover = Dataset.discover

    def answer(dataset: Dataset, root: Any, given: dict[str, str]) -> Discovery | str:
        try:
            found = discover(dataset, root, given)
        except UserError as error:
            return str(error)
        return replace(found, rows=[replace(row, path=Path()) for row in found.rows])

    def compared(self: Dataset, root: Path, given: dict[str, str]) -> Discovery:
        if self.name not in ("folder", "csv") and isinstance(root, Path):
            archived = in_a_tar(root, tmp_path_factory.mktemp("archived") / "root.tar")
            assert archived is None or answer(self, archived, given) == answer(self, root, given)
        return discover(self, root, given)

    monkeypatch.setattr(Dataset, "discover", compared)
