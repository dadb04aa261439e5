"""Tiny real files for miniatures of published layouts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile
from miniatures import BUILDERS

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.sources.archives import is_archive
from unfused_fast.shards.sources.listed_path import ListedPath
from unfused_fast.shards.sources.listing import Listing, is_clutter
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


def as_listed(root: Path) -> Folder | None:
    """The folder as adapters see it in an archive; None where it holds what no archive shows: links, archives, and
    folders without a file.
    """
    listing = Listing(str(root))
    for parent, folders, names in os.walk(root):
        names = [name for name in names if not is_clutter(name)]
        paths = [Path(parent, name) for name in names]
        if not folders + names or any(map(is_archive, names)) or any(map(Path.is_symlink, paths)):
            return None
        listing.files |= {path.relative_to(root).as_posix(): path for path in paths}
    return cast(Folder, ListedPath(listing)) if listing.files else None


@pytest.fixture(autouse=True)
def _in_archives_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer of an adapter in these tests, an error among them, is the same for a folder in an archive."""

    discover = Dataset.discover

    def compared(self: Dataset, root: Path, given: dict[str, str]) -> Discovery:
        listed = as_listed(root) if self.name not in ("folder", "csv") and isinstance(root, Path) else None
        try:
            found = discover(self, root, given)
        except UserError as error:
            if listed is not None:
                with pytest.raises(UserError, match=f"^{re.escape(str(error))}$"):
                    discover(self, listed, given)
            raise
        assert listed is None or discover(self, listed, given) == found
        return found

    monkeypatch.setattr(Dataset, "discover", compared)
