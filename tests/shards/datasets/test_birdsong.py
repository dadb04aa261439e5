"""freefield1010 and warblrb10k in miniature; the split is scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.birdsong import DATASET

FIELD = [(64486, 0), (2525, 1), (44981, 0), (101323, 0), (165746, 1), (488, 0), (7, 1)]
WARBLR = [("759808e5-f824-401e-9058", 1), ("1d94fc4a-1c63-4da0-9cac", 1), ("bb0099ce", 0), ("00ab", 1), ("ff11", 0)]


def _make(root: Path, wav: Callable[..., None], field: str, warblr: str, positions: bool) -> None:
    """positions: with the columns of 2018, else those of the older tables."""
    for name, _ in FIELD:
        wav(root / field / f"wav/{name}.wav", 44100)
    for name, _ in WARBLR:
        wav(root / warblr / f"wav/{name}.wav", 44100)
    if positions:
        lines = ["itemid,datasetid,hasbird", *(f"{name},ff1010bird,{bird}" for name, bird in FIELD)]
        (root / "ff1010bird_metadata_2018.csv").write_text("\n".join(lines) + "\n")
    else:
        lines = ["itemid,hasbird", *(f"{name},{bird}" for name, bird in FIELD)]
        (root / field / "ff1010bird_metadata.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    lines = ["hasbird,itemid", *(f"{bird},{name}" for name, bird in WARBLR)]
    (root / warblr / "warblrb10k_public_metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("field", "warblr", "positions"),
    [("ff1010bird", "warblrb10k", True), ("ff1010bird_wav", "warblrb10k_public", False)],
)
def test_rows(tmp_path: Path, wav: Callable[..., None], field: str, warblr: str, positions: bool) -> None:
    _make(tmp_path, wav, field, warblr, positions)
    found = DATASET.discover(tmp_path, {})
    listed = [*((f"{field}/wav/{name}.wav", bird) for name, bird in FIELD)]
    listed += [(f"{warblr}/wav/{name}.wav", bird) for name, bird in WARBLR]
    _, test = train_test_split(listed, test_size=0.2, random_state=1, stratify=[bird for _, bird in listed])
    assert len(test) == 3
    assert [(row.source, row.label, row.split, row.group, row.fold) for row in found.rows] == [
        (name, ("absent", "present")[bird], "test" if (name, bird) in test else "train", None, None)
        for name, bird in listed
    ]
    assert any("lists 7 clips, 7690 are published: the split is not LAPE's" in note for note in found.notes)
    assert "9 clips of split train here; published: 12,552." in found.notes


def test_a_gap_does_not_move_the_split(tmp_path: Path, wav: Callable[..., None]) -> None:
    _make(tmp_path, wav, "ff1010bird", "warblrb10k", True)
    whole = {row.source: row.split for row in DATASET.discover(tmp_path, {}).rows}
    (tmp_path / "ff1010bird/wav/64486.wav").unlink()
    found = DATASET.discover(tmp_path, {})
    assert {row.source: row.split for row in found.rows}.items() < whole.items() and len(found.rows) == 11
    assert any("1 of the 12 files that the two tables lists are not there" in note for note in found.notes)


def test_another_layout_and_other_tables(tmp_path: Path, wav: Callable[..., None]) -> None:
    _make(tmp_path, wav, "ff1010bird", "warblrb10k", True)
    table = tmp_path / "ff1010bird_metadata_2018.csv"
    text = table.read_text()
    table.write_text(text.replace("64486,ff1010bird,0", "64486,ff1010bird,yes"))
    with pytest.raises(UserError, match="hasbird of 64486 is 'yes', not 0 or 1"):
        DATASET.discover(tmp_path, {})
    table.write_text(text.replace("hasbird", "bird"))
    with pytest.raises(UserError, match="its columns are itemid, datasetid, bird, but itemid, hasbird are needed"):
        DATASET.discover(tmp_path, {})
    table.unlink()
    with pytest.raises(UserError, match=r"no ff1010bird_metadata_2018\.csv here; birdsong needs this layout:"):
        DATASET.discover(tmp_path, {})
    with pytest.raises(UserError, match="no ff1010bird/wav here"):
        DATASET.discover(tmp_path / "warblrb10k", {})
