"""Tiny real files for miniatures of published layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery


@pytest.fixture
def wav() -> Callable[..., None]:
    """`wav(path, rate=16000, channels=1, subtype="PCM_16")` writes 0.2 s of noise, no two files alike."""

    def write(path: Path, rate: int = 16000, channels: int = 1, subtype: str = "PCM_16") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(path.as_posix().encode())).uniform(-0.5, 0.5, (rate // 5, channels))
        soundfile.write(path, noise, rate, subtype)

    return write


class ArchiveFolder:
    """A folder that has nothing but what places.Folder promises to adapters."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def __truediv__(self, name: str) -> ArchiveFolder:
        return ArchiveFolder(self._path / name)

    name = property(lambda self: self._path.name)
    stem = property(lambda self: self._path.stem)
    suffix = property(lambda self: self._path.suffix)
    parts = property(lambda self: self._path.parts)
    parent = property(lambda self: ArchiveFolder(self._path.parent))

    def relative_to(self, other: ArchiveFolder) -> PurePosixPath:
        return PurePosixPath(self._path.relative_to(other._path))

    def as_posix(self) -> str:
        return self._path.as_posix()

    def exists(self) -> bool:
        return self._path.exists()

    def is_file(self) -> bool:
        return self._path.is_file()

    def is_dir(self) -> bool:
        return self._path.is_dir()

    def iterdir(self) -> Iterator[ArchiveFolder]:
        return map(ArchiveFolder, self._path.iterdir())

    def glob(self, pattern: str) -> Iterator[ArchiveFolder]:
        assert "**" not in pattern
        return map(ArchiveFolder, self._path.glob(pattern))

    def stat(self) -> Any:
        return SimpleNamespace(st_size=self._path.stat().st_size)

    def open(self, *given: Any, **named: Any) -> Any:
        return self._path.open(*given, **named)

    def read_text(self, *given: Any, **named: Any) -> str:
        return self._path.read_text(*given, **named)


@pytest.fixture(autouse=True)
def _in_archives_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer of an adapter in these tests, an error among them, is the same for a folder in an archive."""

    def answer(discover: Callable[..., Discovery], root: Any, given: dict[str, str]) -> Discovery | str:
        try:
            found = discover(root, given)
        except UserError as error:
            return str(error)
        return replace(found, rows=[replace(row, path=Path(str(row.path))) for row in found.rows])

    def both(self: Dataset) -> Callable[..., Discovery]:
        discover: Callable[..., Discovery] = self.__dict__["discover"]

        def compared(root: Path, given: dict[str, str]) -> Discovery:
            if self.name not in ("folder", "csv"):
                assert answer(discover, ArchiveFolder(root), given) == answer(discover, root, given)
            return discover(root, given)

        return compared

    monkeypatch.setattr(Dataset, "discover", property(both), raising=False)
