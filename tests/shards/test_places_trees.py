"""A folder as it would look if its archives had been unpacked in place."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from archive_files import make_archive, make_tar, make_zip, read_row, reasons

from unfused_fast.shards.datasets import dataset_rows
from unfused_fast.shards.datasets.speechcommands import TEN, V1
from unfused_fast.shards.sources.branch import Branch
from unfused_fast.shards.sources.places import Kind, Place
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.shards.sources.trees import folder_of


@pytest.mark.parametrize("into", ["", "a"])
def test_unpacked_files_win_over_their_archive(into: str, audio: Path, tmp_path: Path) -> None:
    path = make_archive("tar", audio, tmp_path / "in")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "in" / into, filter="data")
    rows = source_rows(tmp_path / "in")
    assert len(rows) == 9 and all(isinstance(row.path, Path) for row in rows)
    gone = rows[4]
    assert isinstance(gone.path, Path)
    gone.path.unlink()
    again = source_rows(tmp_path / "in")
    assert [row.source for row in again] == [row.source for row in rows]
    assert isinstance(again[4].path, Place)


def test_one_name_in_two_archives_comes_twice_only_if_the_files_differ(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"same.wav": b"same", "x.wav": b"one"})
    make_zip(tmp_path / "b.zip", {"same.wav": b"same"})
    assert {row.source: read_row(row) for row in source_rows(tmp_path)} == {"same.wav": b"same", "x.wav": b"one"}
    make_zip(tmp_path / "c.zip", {"x.wav": b"two"})
    assert {row.source: read_row(row) for row in source_rows(tmp_path)} == {
        "a/same.wav": b"same",
        "a/x.wav": b"one",
        "same.wav": b"same",
        "c/x.wav": b"two",
    }


def test_clutter_in_archives_is_left_out(tmp_path: Path) -> None:
    make_zip(
        tmp_path / "a.zip", {"__MACOSX/._a.wav": b"x", ".hidden/a.wav": b"x", "d/.DS_Store": b"x", "d/a.wav": b"x"}
    )
    assert list(reasons(tmp_path)) == ["d/a.wav"]


def test_folder_without_archives_stays_a_path(audio: Path) -> None:
    assert folder_of(audio) == audio and type(folder_of(audio)) is type(audio)


def test_archives_in_a_folder_are_read_with_and_without_its_name_as_a_data_set(
    audio: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    make_archive("tar", audio, tmp_path / "in")
    plain = cli("shard", tmp_path / "in", tmp_path / "plain", "--json", "--workers", 1)
    named = cli("shard", tmp_path / "in", tmp_path / "named", "--json", "--workers", 1, "--dataset", "folder")
    assert named.code == 0, named.err
    assert json.loads(named.out)["digest"] == json.loads(plain.out)["digest"]


def test_branch_answers_as_the_unpacked_path(audio: Path, tmp_path: Path) -> None:
    source = make_archive("tar.gz", audio, tmp_path / "in")
    (tmp_path / "in/real.txt").write_text("line\r\nüber\n", encoding="utf-8")
    plain = tmp_path / "plain"
    shutil.copytree(audio, plain)
    shutil.copy(tmp_path / "in/real.txt", plain)
    for folder, other in ((folder_of(tmp_path / "in"), plain), (folder_of(source), audio)):
        assert isinstance(folder, Branch)
        for pattern in ("*", "*/*.wav", "label1/*", "label?", "label0/none*", "none/*", "*.txt", "label[12]/ü*"):
            here = [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]
            assert here == sorted(path.relative_to(other).as_posix() for path in other.glob(pattern)), pattern
        for path in sorted(other.rglob("*")):
            twin = folder / path.relative_to(other).as_posix()
            facts = ("exists", "is_file", "is_dir")
            assert [getattr(twin, fact)() for fact in facts] == [getattr(path, fact)() for fact in facts]
            assert (twin.name, twin.stem, twin.suffix) == (path.name, path.stem, path.suffix)
            assert twin.parent.name == path.parent.name or path.parent == other
            assert twin.relative_to(folder).parts == path.relative_to(other).parts
            if path.is_file():
                assert twin.stat().st_size == path.stat().st_size
                with twin.open("rb") as file:
                    assert file.read() == path.read_bytes()
            else:
                assert {each.name for each in twin.iterdir()} == {each.name for each in path.iterdir()}
        assert not (folder / "gone").exists() and not (folder / "gone/deeper").is_dir()
        with pytest.raises(OSError, match=r"no such file|No such file"):
            (folder / "gone").open()
    both = folder_of(tmp_path / "in")
    assert (both / "real.txt").read_text("utf-8") == "line\nüber\n"
    assert not (both / source.name).exists()


def test_reading_text_of_a_member_ends_lines_as_a_file_does(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"list.csv": "\ufeffa,b\r\nü,2\r\n".encode()})
    table = folder_of(tmp_path / "a.zip") / "list.csv"
    assert table.read_text("utf-8-sig") == "a,b\nü,2\n"
    with table.open(encoding="utf-8-sig", newline="") as stream:
        assert stream.read() == "a,b\r\nü,2\r\n"


@pytest.mark.parametrize("protocol", ["words", "tf12"])
def test_adapter_reads_archives_as_it_reads_the_unpacked_folders(protocol: str, tmp_path: Path) -> None:
    plain, archived = tmp_path / "plain", tmp_path / "archived"
    archived.mkdir()
    words = {"speech_commands_v0.01": sorted(V1.words), "speech_commands_test_set_v0.01": sorted(TEN)}
    for folder, names in words.items():
        for word in [*names, "_background_noise_"] if len(names) > 10 else [*names, "_unknown_", "_silence_"]:
            (plain / folder / word).mkdir(parents=True)
            soundfile.write(plain / folder / word / "0a7c2a8d_nohash_0.wav", np.zeros(16), 16000)
    for name in ("validation_list.txt", "testing_list.txt"):
        (plain / "speech_commands_v0.01" / name).write_text("")
    for folder in words:
        make_tar(archived / f"{folder}.tar.gz", plain / folder, "w:gz")
    options = {"protocol": protocol}
    expected = dataset_rows("speechcommands-v1", plain, options)
    found = dataset_rows("speechcommands-v1", folder_of(archived), options)
    assert [replace(row, path=Path()) for row in found.rows] == [replace(row, path=Path()) for row in expected.rows]
    assert found.notes == expected.notes
    assert all(isinstance(row.path, Place) and row.path.kind == Kind.GZIP for row in found.rows)
