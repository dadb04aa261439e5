"""What the tests of `embed` share: an encoder and a folder of recordings."""

from pathlib import Path

import pytest

import unfused_fast
from unfused_fast.embedding.embedder import Embedder
from unfused_fast.shards.sources.row import SourceRow


@pytest.fixture(scope="module")
def embedder(pretrained: Path) -> Embedder:
    return unfused_fast.load(pretrained, device="cpu")


@pytest.fixture(scope="module")
def folder(tone_rows: list[SourceRow]) -> Path:
    assert isinstance(tone_rows[0].path, Path)
    return tone_rows[0].path.parent
