"""Hostile lists are read or refused in one sentence, and lead to no file outside the set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hostile.csv_files import Case, cases

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.source_rows import source_rows

CASES = cases()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders down, so that `../..` leads to a place that is looked at."""
    deep = tmp_path / "audio/lists"
    deep.mkdir(parents=True)
    for number, name in enumerate(["a.wav", "b.wav", "new\nline.wav", "../../outside.wav"]):
        soundfile.write(deep / name, 0.5 * np.sin(np.arange(4000) * (0.1 + 0.01 * number)), 16000)
    return deep


@pytest.mark.parametrize("case", CASES, ids=[name for name, _, _ in CASES])
def test_it_is_read_or_refused(folder: Path, case: Case) -> None:
    _, data, expected = case
    (folder / "list.csv").write_bytes(data)
    if isinstance(expected, list):
        assert [row.source for row in source_rows(folder / "list.csv")] == expected
    else:
        with pytest.raises(UserError) as caught:
            source_rows(folder / "list.csv")
        message = str(caught.value)
        assert message.startswith(f"{folder / 'list.csv'}") and expected in message
        assert len(message) < len(str(folder)) + 600


@pytest.mark.parametrize(
    ("name", "packed"),
    [("paths that leave the folder", 2), ("paths of devices", 1), ("label with everything", 1)],
)
def test_what_it_lists_is_packed_and_nothing_else_is_touched(folder: Path, name: str, packed: int) -> None:
    data = next(data for case, data, _ in CASES if case == name)
    (folder / "list.csv").write_bytes(data)
    before = sorted(folder.parent.parent.rglob("*"))
    out = folder.parent / "out"
    rows = source_rows(folder / "list.csv")
    result = pack(rows, out, workers=1)
    assert (result.packed, sum(result.rejected.values())) == (packed, len(rows) - packed)
    after = [path for path in sorted(folder.parent.parent.rglob("*")) if out not in (path, *path.parents)]
    assert after == before
