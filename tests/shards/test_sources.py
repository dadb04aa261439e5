"""SOURCE -> rows: folders with links and clutter, CSV files as people write them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import probe
from unfused_fast.shards.demo import DEMO_NAMES, demo_rows, union_rows
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def _csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_folder_lists_every_file_but_clutter(tmp_path: Path) -> None:
    _touch(tmp_path, "b.wav", "a/c d.flac", "a/deep/ü.txt", "-x.mp3")
    _touch(tmp_path, ".DS_Store", ".git/config", "a/Thumbs.db", "__MACOSX/b.wav", "a/._c d.flac")
    assert source_rows(tmp_path) == [
        SourceRow(tmp_path / "-x.mp3", "-x.mp3"),
        SourceRow(tmp_path / "a/c d.flac", "a/c d.flac"),
        SourceRow(tmp_path / "a/deep/ü.txt", "a/deep/ü.txt"),
        SourceRow(tmp_path / "b.wav", "b.wav"),
    ]


def test_first_folder_is_the_label(tmp_path: Path) -> None:
    _touch(tmp_path, "dog/a.wav", "dog/old/b.wav", "cat/a.wav", "loose.wav")
    labels = {row.source: row.label for row in source_rows(tmp_path, labels_from_folders=True)}
    assert labels == {"cat/a.wav": "cat", "dog/a.wav": "dog", "dog/old/b.wav": "dog", "loose.wav": None}
    assert {row.label for row in source_rows(tmp_path)} == {None}


def test_links_are_followed_once_and_never_round(tmp_path: Path) -> None:
    root = _touch(tmp_path / "root", "a/one.wav", "b/two.wav")
    _touch(tmp_path, "elsewhere/three.wav", "beside.wav")
    (root / "a/loop").symlink_to(root / "a")
    (root / "b/up").symlink_to(tmp_path)  # holds root: would bring in beside.wav
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(root / "b")
    (root / "file.wav").symlink_to(tmp_path / "beside.wav")
    (root / "broken.wav").symlink_to(tmp_path / "nowhere")
    (root / "self").symlink_to(root / "self")
    names = [row.source for row in source_rows(root)]
    assert names == ["a/one.wav", "b/two.wav", "broken.wav", "file.wav", "linked/three.wav", "self"]


def test_paths_longer_than_the_system_takes_are_listed(tmp_path: Path) -> None:
    """They are made step by step, as no name leads to them; packing rejects them."""
    _touch(tmp_path, "a.wav")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(22):
        os.mkdir("d" * 200, dir_fd=folder)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
        os.close(os.open("x.wav", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    try:
        rows = source_rows(tmp_path)
    finally:
        shutil.rmtree(tmp_path / ("d" * 200))
    reached = [row for row in rows if row.source.endswith("x.wav")]
    assert rows[0].source == "a.wav" and 15 <= len(reached) <= 21
    (beyond,) = [row for row in rows if row.source.endswith("/")]
    with pytest.raises(Rejected, match="unreadable: File name too long"):
        probe(beyond.path)  # type: ignore[arg-type]


def test_shard_set_inside_the_folder_is_no_source(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", "packed/manifest.json", "packed/clips.parquet", "packed/train-000000.tar")
    notes: list[str] = []
    assert [row.source for row in source_rows(tmp_path, note=notes.append)] == ["a.wav"]
    assert notes == [f"{tmp_path}: 1 shard sets in it are left out, such as {tmp_path / 'packed'}"]


def test_name_that_is_no_utf8_is_written_so_that_it_can_be(tmp_path: Path) -> None:
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_text("x")
    (row,) = source_rows(tmp_path)
    assert row.source == r"caf\xe9.wav" and row.path.exists()


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
    folder = _touch(tmp_path / "lists")
    folder.mkdir(exist_ok=True)
    rows = source_rows(_csv(folder, newline.join(lines).encode(encoding)))
    assert rows == [
        SourceRow(folder / "sub/a, b.wav", "sub/a, b.wav", "dog", "train", "s1"),
        SourceRow(folder / "ü.wav", "ü.wav", None, "train", None),
        SourceRow(tmp_path / "up.wav", "../up.wav", "cat", "my_Split2", None),
        SourceRow(outside / "deep/x.wav", "deep/x.wav", "dog", "test", "s2"),
        SourceRow(outside / "y.wav", "y.wav", "dog", "test", "s2"),
        SourceRow(folder / "abs.wav", "abs.wav", "dog", "train", None),
    ]


def test_blank_lines_before_the_header_of_a_csv_are_passed_over(tmp_path: Path) -> None:
    assert [row.source for row in source_rows(_csv(tmp_path, "\n , \npath,label\n\na.wav,x\n"))] == ["a.wav"]


def test_csv_names_stay_apart(tmp_path: Path) -> None:
    rows = source_rows(_csv(tmp_path, "path\na.wav\n/elsewhere/a.wav\n"))
    assert [row.source for row in rows] == ["a.wav", "a.wav (2)"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no column path", "the file is empty"]),
        ("path,label\n", ["no lines"]),
        ("file,label\na.wav,x\n", ["no column path", "file, label"]),
        ("path;label\na.wav;x\n", ["no column path", "path;label"]),
        ("path,split\na.wav,my split\n", ["line 2", "'my split'", "letters, digits and underscores"]),
        ("path,split\na.wav,../x\n", ["line 2", "'../x'"]),
        ("path\na.wav\nb.wav\n./x/../a.wav\n", ["line 4", "./x/../a.wav", "line 2"]),
        ("path,label\n,x\n", ["line 2", "path is empty"]),
        (b"path\ncaf\xe9.wav\n", ["not UTF-8"]),
        ("path\n" + "x" * 200_000 + "\n", ["not readable as CSV", "field larger"]),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        source_rows(_csv(tmp_path, text))
    assert all(word in str(caught.value) for word in ["list.csv", *words]), str(caught.value)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such file or folder"):
        source_rows(tmp_path / "gone")
    _touch(tmp_path, ".DS_Store", "song.wav")
    with pytest.raises(UserError, match=r"song\.wav: neither a folder, an archive nor a CSV"):
        source_rows(tmp_path / "song.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no files"):
        source_rows(tmp_path / "empty")
    with pytest.raises(UserError, match="labels from folders need a folder"):
        source_rows(_csv(tmp_path, "path\na.wav\n"), labels_from_folders=True)


def test_embedded_sets() -> None:
    spoken, notes = (demo_rows(name) for name in DEMO_NAMES)
    assert (len(spoken), len({row.label for row in spoken})) == (800, 5)
    assert (len(notes), len({row.label for row in notes})) == (616, 11)
    assert all(row.path.is_file() for row in spoken + notes)
    assert {row.split for row in spoken} == {"train", "valid", "test"}
    for rows in (spoken, notes):
        split_of: dict[str | None, set[str]] = {}
        for row in rows:
            split_of.setdefault(row.group, set()).add(row.split)
        assert not {group for group, splits in split_of.items() if "test" in splits and len(splits) > 1}


def test_union_of_the_embedded_sets_is_their_training_clips() -> None:
    union = union_rows()
    wanted = [row.path for name in DEMO_NAMES for row in demo_rows(name) if row.split == "train"]
    assert [row.path for row in union] == wanted
    assert {(row.label, row.split) for row in union} == {(None, "train")}
    assert len({row.source for row in union}) == len(union)
    assert all(row.source.split("/")[0] == (row.group or "").split("/")[0] for row in union)
