"""A folder -> rows: links, clutter, splits and labels that folders name."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from permissions import mode

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import probe
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.shards.sources.split_names import unread_splits, usual_splits


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def test_folder_lists_every_file_but_clutter(tmp_path: Path) -> None:
    _touch(tmp_path, "b.wav", "a/c d.flac", "a/deep/ü.txt", "-x.mp3")
    _touch(tmp_path, ".DS_Store", ".git/config", "a/Thumbs.db", "__MACOSX/b.wav", "a/._c d.flac")
    assert source_rows(tmp_path) == [
        SourceRow(tmp_path / "-x.mp3", "-x.mp3"),
        SourceRow(tmp_path / "a/c d.flac", "a/c d.flac"),
        SourceRow(tmp_path / "a/deep/ü.txt", "a/deep/ü.txt"),
        SourceRow(tmp_path / "b.wav", "b.wav"),
    ]


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


def test_a_folder_that_may_not_be_read_says_why(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", "closed/b.wav")
    with mode(tmp_path / "closed", 0):
        _, closed = source_rows(tmp_path)
    assert closed.source == "closed/"
    with pytest.raises(Rejected, match="unreadable: Permission denied"):
        probe(closed.path)


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
        probe(beyond.path)


@pytest.mark.parametrize(
    "files", ["packed/manifest.json packed/clips.parquet", "packed/part.json packed/journal/request.json", ""]
)
def test_shard_set_inside_the_folder_is_no_source(tmp_path: Path, files: str) -> None:
    """Nor is a part of one, nor, as `shard FOLDER FOLDER/packed` leaves it when it is killed, an unfinished one."""
    inside = tmp_path / ("packed" if files else "packed.partial")
    _touch(tmp_path, "a.wav", *(files.split() or ["packed.partial/journal/request.json"]))
    _touch(inside, "train-000000.tar")
    notes: list[str] = []
    assert [row.source for row in source_rows(tmp_path, note=notes.append)] == ["a.wav"]
    assert notes == [f"{tmp_path}: 1 shard set in it left out, such as {inside}"]


def test_sources_that_are_none(tmp_path: Path) -> None:
    _touch(tmp_path, ".DS_Store", "song.wav", "list.csv")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("gone", "no such file or folder"),
        ("song.wav", "neither a folder, an archive nor a CSV"),
        ("empty", "no files in it"),
        ("list.csv", "labels from folders need a folder"),
    ):
        with pytest.raises(UserError, match=f"{name}: {said}"):
            source_rows(tmp_path / name, labels_from_folders=name == "list.csv")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("train validation test", "train valid test"),
        ("training val testing", "train valid test"),
        ("TRAIN Dev Eval", "train valid test"),
        ("dev eval", "train test"),  # as FSD50K and DCASE call them
        ("train dev test", "train valid test"),
        ("train dev val test", "train dev valid test"),
        ("train test eval", "train test eval"),
        ("train extra", "train extra"),
        ("Train train", "train train"),
    ],
)
def test_usual_names(names: str, taken: str) -> None:
    assert usual_splits(names.split()) == dict(zip(names.split(), taken.split(), strict=True))


def test_splits_that_are_not_read_are_named() -> None:
    assert unread_splits({"train": 3, "valid": 1, "test": 1}) is None
    said = unread_splits({"train": 3, "extra": 2, "validation": 1})
    assert said is not None and "but not extra (2 clips), validation (1 clip)" in said


@pytest.mark.parametrize(
    ("files", "labels_from_folders", "wanted", "said"),
    [
        (
            "train/dog/1.wav train/cat/old/2.wav val/dog/3.wav test/cat/4.wav",
            True,
            "train:dog train:cat valid:dog test:cat",
            "val (1 file) as valid",
        ),
        ("train/dog/1.wav test/cat/4.wav", False, "train:None test:None", "test (1 file)"),
        ("train/dog/1.wav train/cat/2.wav", True, "train:dog train:cat", "train (2 files)"),
        # text next to the audio does not change what the folders are
        ("train/a/1.wav test/a/2.wav docs/licence.txt", True, "train:a test:a train:None", "read from the folders"),
        (
            "loose.wav train/a/1.wav test/a/2.wav",
            True,
            "train:None train:a test:a",
            "1 file next to the folders of the splits put in train",
        ),
        # a folder that holds everything, as in most archives
        ("esc/train/a/1.wav esc/test/b/2.wav", True, "train:a test:b", "test (1 file)"),
        # a class that is called test, or train
        ("test/1.wav dog/2.wav", True, "train:test train:dog", "folders test are labels or parts of them, not splits"),
        ("test/1.wav dog/2.wav", False, "train:None train:None", "folders test are not read as splits"),
        (
            "dog/train/1.wav dog/test/2.wav cat/train/3.wav",
            True,
            "train:dog train:dog train:cat",
            "are labels or parts of them",
        ),
        ("animals/dog/1.wav", True, "train:animals", ""),
        (
            "all/wav/dog/1.wav all/wav/cat/old/2.wav all/list.csv all/wav/3.wav",
            True,
            "train:dog train:cat train:None train:None",
            "labels are the folders in all/wav/, which holds all files",
        ),
    ],
)
@pytest.mark.parametrize("packed_as", ["folder", "zip", "tar"])
def test_folders(tmp_path: Path, files: str, labels_from_folders: bool, wanted: str, said: str, packed_as: str) -> None:
    root = tmp_path / "root"
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    source = root
    if packed_as != "folder":
        source = Path(shutil.make_archive(str(tmp_path / "packed"), packed_as, root))
    notes: list[str] = []
    rows = source_rows(source, labels_from_folders=labels_from_folders, note=notes.append)
    assert Counter(f"{row.split}:{row.label}" for row in rows) == Counter(wanted.split())
    assert said in " ".join(notes) and bool(notes) == bool(said)
    assert [row.source for row in rows] == sorted(files.split())


@pytest.mark.parametrize("inside", ["", "{split}/"])
@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_an_archive_for_each_split(tmp_path: Path, inside: str, form: str) -> None:
    for split, label in (("train", "dog"), ("test", "cat")):
        name = tmp_path / split / inside.format(split=split) / label / f"{split}.wav"
        name.parent.mkdir(parents=True)
        name.touch()
        shutil.make_archive(str(tmp_path / "root" / split), form, tmp_path / split)
    rows = source_rows(tmp_path / "root", labels_from_folders=True)
    assert [(row.source, row.split, row.label) for row in rows] == [
        ("test/cat/test.wav", "test", "cat"),
        ("train/dog/train.wav", "train", "dog"),
    ]
    if not inside:  # alone, it is only an archive
        alone = next((tmp_path / "root").glob("train.*"))
        assert [(row.source, row.split) for row in source_rows(alone)] == [("dog/train.wav", "train")]
