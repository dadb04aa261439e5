"""CSV files as people write them, and hostile ones: read, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hostile.tables import Case, cases

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path: Path, encoding: str, newline: str) -> None:
    outside = tmp_path / "outside"
    lines = [
        "seconds, path ,label,split,group",
        '1.0,"sub/a, b.wav",dog,train,s1',
        "2.0,ü.wav,,,",
        "3.0,../up.wav, cat ,my_Split2,",
        f"4.0,{outside}/deep/x.wav,dog,test,s2",
        f"5.0,{outside}/y.wav,dog,test,s2",
        f"6.0,{tmp_path}/lists/abs.wav,dog,,",
    ]
    folder = tmp_path / "lists"
    folder.mkdir()
    table = folder / "list.csv"
    table.write_bytes(newline.join(lines).encode(encoding))
    rows = source_rows(table)
    assert rows == [
        SourceRow(folder / "sub/a, b.wav", "sub/a, b.wav", "dog", "train", "s1"),
        SourceRow(folder / "ü.wav", "ü.wav", None, "train", None),
        SourceRow(folder / "../up.wav", "../up.wav", "cat", "my_Split2", None),
        SourceRow(outside / "deep/x.wav", "deep/x.wav", "dog", "test", "s2"),
        SourceRow(outside / "y.wav", "y.wav", "dog", "test", "s2"),
        SourceRow(folder / "abs.wav", "abs.wav", "dog", "train", None),
    ]


def test_paths_lead_where_the_system_finds_them(tmp_path: Path) -> None:
    """Spaces that are no part of a name are left out, and `..` is that of the folder that a link leads to."""
    table = tmp_path / "lists/t.csv"
    for name in ("lists", "far/deep"):
        (tmp_path / name).mkdir(parents=True)
    (table.parent / "link").symlink_to(tmp_path / "far/deep")
    for path in (table.parent / "a.wav", table.parent / "b.wav ", table.parent / "c.wav", tmp_path / "far/c.wav"):
        path.write_text(str(path))
    absolute = tmp_path / "lists/link/../c.wav"
    for given, found in (("a.wav ", "a.wav"), ("b.wav ", "b.wav "), ("link/../c.wav", "c.wav"), (absolute, "c.wav")):
        table.write_text(f"path , label\n{given}, dog\n")
        (row,) = source_rows(table)
        assert isinstance(row.path, Path)
        assert (row.path.read_text().rpartition("/")[2], row.source, row.label) == (found, found, "dog")
        assert ("far" in row.path.read_text()) == ("link" in str(given))


def test_columns_of_a_table(tmp_path: Path) -> None:
    table, notes = tmp_path / "t.csv", list[str]()
    table.write_text(
        'path,labels,fold,split,Speaker,take\na.wav,"dog, bark,dog",1,Training,s,1\n'
        "b.wav,,2.0,val,s,1\nc.wav,cat,,,s,1\n"
    )
    rows = source_rows(table, note=notes.append)
    assert [(row.label, row.labels, row.fold, row.split) for row in rows] == [
        (None, ("dog", "bark"), 1, "train"),
        (None, (), 2, "valid"),
        (None, ("cat",), None, "train"),
    ]
    assert notes == [
        f"{table}: 1 of 3 files have no split and are put in train",
        f"{table}: splits are renamed: Training (1 file) as train, val (1 file) as valid",
        f"{table}: columns not read: Speaker, take; the columns read are path, label, labels, split, group, fold",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na.wav,train\nb.wav,test\n", "every label is the name of a split; if these are splits"),
        (
            "path,labels\na.wav,dog;bark\nb.wav,cat\n",
            "1 file of 2 with several labels in one, such as dog;bark; separate them",
        ),
        (
            "path,labels\na.wav,\"['dog', 'bark']\"\n",
            "1 file of 1 with several labels in one, such as ['dog', 'bark']; separate",
        ),
        ("path,label\na.wav,\"['dog', 'bark']\"\nb.wav,cat\n", "by commas, without brackets, in a column labels"),
        ('path,label\na.wav,[silence]\nb.wav,"Dog, bark"\n', ""),
    ],
)
def test_tables_that_may_mean_something_else(tmp_path: Path, text: str, said: str) -> None:
    notes: list[str] = []
    (tmp_path / "t.csv").write_text(text)
    source_rows(tmp_path / "t.csv", note=notes.append)
    assert said in " ".join(notes) and bool(notes) == bool(said)
