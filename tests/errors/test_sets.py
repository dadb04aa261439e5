"""Paths, folders, tables and shard sets that cannot be used: one sentence, exit code 1 or 2, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outcomes import Cli, refused


def test_missing_paths(cli: Cli, pretrain: Cli, distill: Cli, linear: Cli, tones: Path, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone", tmp_path / "out"
    refused(cli("shard", gone, out), gone, "no such file or folder", "name a folder of audio, an archive or a CSV")
    refused(cli("report", gone), gone, "does not exist", "give directories that unfused-fast train wrote")
    refused(cli("train", "all", gone, "--out", out), gone, "no such folder", "unfused-fast shard")
    for done in (pretrain(gone, out), linear(gone, "random", out), distill(gone, gone, out)):
        refused(done, gone, "no such folder", "unfused-fast shard SOURCE")
    for done in (linear(tones, gone, out), distill(tones, gone, out)):
        refused(done, gone, "no run of unfused-fast", "give a directory that train pretrain, distill or finetune wrote")
    done = cli("check", gone)
    refused(done, gone, "no such folder")
    assert list(tmp_path.iterdir()) == []


def test_empty_folders(cli: Cli, pretrain: Cli, linear: Cli, tones: Path, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    refused(cli("shard", empty, out), empty, "no files in it", "name a folder or an archive that holds audio")
    refused(pretrain(empty, out), empty, "holds no manifest.json", "make one with: unfused-fast shard")
    refused(linear(tones, empty, out), empty, "no config.json", "give a directory")
    refused(cli("report", empty), empty, "holds no finished run", "give directories")
    assert list(tmp_path.iterdir()) == [empty]


def test_nothing_usable(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.wav").write_text("this is text\n" * 40)
    (folder / "empty.mp3").touch()
    done = cli("shard", folder, tmp_path / "out", "--workers", 1)
    refused(done, "2 files, none of them usable", "1 empty file", "1 not audio", "nothing was written", "name audio")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_table_without_path(cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("file,label\na.wav,dog\n")
    refused(cli("shard", table, tmp_path / "out"), table, "no column path", "file, label", "path,label,split,group")
    assert list(tmp_path.iterdir()) == [table]


def test_usage(cli: Cli, tones: Path) -> None:
    for arguments in (["report"], ["train", "pretrain", tones], ["train", "pretrain", tones, "--epochs", "many"]):
        done = cli(*arguments)
        assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert "Missing option '--out'" in cli("train", "pretrain", tones).err
    assert "No such option: --epoch" in cli("train", "pretrain", tones, "--epoch", 3).err
    assert "'mine' is not one of 'recommended', 'paper', 'authors'" in cli("config", "--preset", "mine").err


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--debug", "report", tmp_path], ["report", tmp_path, "--debug"]):
        done = cli(*arguments)
        assert done.code == 1 and "Traceback" in done.err and "collect_results" in done.err
        assert done.err.splitlines()[-1].startswith("error: ")

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("unfused_fast.evaluation.collect_results", broken)
    done = cli("report", tmp_path)
    assert done.code == 70 and "ZeroDivisionError: by zero (this is a bug in unfused-fast; --debug" in done.error


def test_a_truncated_tar(
    cli: Cli, pretrain: Cli, linear: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    shards, out = copy_of(tones), tmp_path / "out"
    tar = shards / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-20000])
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, tar, "its index needs", "truncated", "copy it again, or pack again")
    done = cli("check", shards)
    assert done.code == 1 and str(tar) in done.out
    assert not out.exists()


@pytest.mark.parametrize("damage", ["garbage", "folder", "missing", "audio"])
def test_an_unreadable_tar(
    pretrain: Cli, linear: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path, damage: str
) -> None:
    shards, out = copy_of(tones), tmp_path / "out"
    tar = shards / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    tar.unlink()
    if damage == "garbage":
        tar.write_bytes(np.random.default_rng(0).bytes(len(data)))
        parts = ["has no tar header", "pack again"]
    elif damage == "audio":
        place = data.index(b"WAVEfmt ", len(data) // 2) - 8
        data[place : place + 44] = bytes(44)
        tar.write_bytes(data)
        parts = ["one of train-000000.tar", "cannot be read or decoded", f"check {shards} says what is wrong"]
    else:
        parts = ["missing" if damage == "missing" else "not a file", "copy the whole set again or pack it again"]
        if damage == "folder":
            tar.mkdir()
    where = shards if damage == "audio" else tar.with_suffix("")
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, where, *parts)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["swapped", "line lost", "clip twice", "other names", "no index", "head"])
def test_an_index_that_does_not_fit(
    pretrain: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path, damage: str
) -> None:
    shards, out = copy_of(tones), tmp_path / "out"
    index = shards / "train-000000.idx"
    lines = index.read_text().splitlines()
    if damage == "swapped":
        lines = (shards / "train-000001.idx").read_text().splitlines()
    elif damage == "line lost":
        lines = [f"v1.2 {len(lines) - 2}", *lines[1:-1]]
    elif damage == "clip twice":
        lines[5] = lines[4]
    elif damage == "other names":
        lines[1:] = [line.replace(".index", ".cls") for line in lines[1:]]
    elif damage == "head":
        lines[0] = "v1.1 25"
    index.write_text("\n".join(lines) + "\n")
    if damage == "no index":
        index.unlink()
    refused(pretrain(shards, out), index.with_suffix(""), "pack")
    assert not out.exists()


def test_a_manifest_of_another_version(
    pretrain: Cli, linear: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    shards, out = copy_of(tones), tmp_path / "out"
    manifest = shards / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 1}))
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, manifest, "schema version 1", "reads version 5", "pack the set again with: unfused-fast shard")
    manifest.write_text("{")
    refused(pretrain(shards, out), manifest, "cannot be read", "pack it again")
    assert not out.exists()


def test_a_label_that_train_lacks(
    cli: Cli, linear: Cli, tiny: list[str], tone_rows: list[Any], pack_rows: Cli, tmp_path: Path
) -> None:
    rows = [row for row in tone_rows if (row.split, row.label) != ("train", "high")]
    shards, out = pack_rows(rows, tmp_path / "set"), tmp_path / "out"
    everything = cli("train", "all", shards, "--out", out, *tiny)
    for done in (linear(shards, "random", out), everything):
        refused(done, shards, "labels that train lacks: high", "add such clips to train or drop them")
    rows = [row for row in tone_rows if row.split == "valid" or row.label != "high"]
    other = pack_rows(rows, tmp_path / "other")
    refused(linear(other, "random", out), other, "split valid has labels that train lacks: high")
    assert not out.exists()


def test_one_class_only(
    linear: Cli, distill: Cli, pretrained: Path, tone_rows: list[Any], pack_rows: Cli, tmp_path: Path
) -> None:
    shards, out = pack_rows([row for row in tone_rows if row.label == "low"], tmp_path / "set"), tmp_path / "out"
    refused(linear(shards, "random", out), shards, "one class only", "at least two")
    refused(distill(shards, pretrained, out), shards, "names 1 classes", "--set pseudo.k=N")
    assert not out.exists()


def test_no_labels(
    cli: Cli, linear: Cli, distill: Cli, tiny: list[str], unlabelled: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for done in (linear(unlabelled, "random", out), cli("train", "all", unlabelled, "--out", out, *tiny)):
        refused(done, unlabelled, "60 of 60 clips of split train have no label", "--labels-from-folders")
    refused(distill(unlabelled, pretrained, out), unlabelled, "names 0 classes", "--set pseudo.k=N (at least 2)")
    assert not out.exists()


def test_some_labels_are_missing(linear: Cli, tone_rows: list[Any], pack_rows: Cli, tmp_path: Path) -> None:
    rows = [replace(row, label=None) if number == 3 else row for number, row in enumerate(tone_rows)]
    refused(linear(pack_rows(rows, tmp_path / "set"), "random", tmp_path / "out"), "1 of 60 clips of split train")


def test_too_few_clips(pretrain: Cli, tone_rows: list[Any], pack_rows: Cli, tmp_path: Path) -> None:
    one, none = pack_rows(tone_rows[:1], tmp_path / "one"), pack_rows(tone_rows[-3:], tmp_path / "none")
    refused(pretrain(one, tmp_path / "out", "--set", "cluster.k=1"), "1 clip", "at least 2")
    refused(pretrain(none, tmp_path / "out"), none, "it has no train split (only test); pack one")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["-rf.wav", "--help.flac"])
def test_names_that_begin_with_dashes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    for command in ("shard", "embed", "check"):
        done = cli(command, "a.wav", name)
        assert done.code == 2 and f"{name} is a file here, but reads as an option: write ./{name}" in done.err
    assert "is a file here" not in cli("shard", "--nonsense").err
