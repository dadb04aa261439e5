"""Paths, folders, tables and shard sets that cannot be used: one sentence, exit code 1 or 2, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from outcomes import Cli, refused

from unfused_fast.shards.sources.row import SourceRow

PATHS: list[tuple[str, str, list[str]]] = [
    (
        "shard gone OUT",
        "gone",
        ["no such file or folder", "name a folder of audio, a tar, tar.gz or zip archive, or a .csv"],
    ),
    ("shard empty OUT", "empty", ["no files in it", "name a folder or an archive that holds audio"]),
    ("shard table.csv OUT", "table.csv", ["no column path", "file, label", "path,label,split,group"]),
    ("report gone", "gone", ["does not exist", "give directories that unfused-fast train wrote"]),
    ("report empty", "empty", ["holds no finished run", "give directories"]),
    ("check gone", "gone", ["no such folder"]),
    ("train all gone --out OUT", "gone", ["no such folder", "make a shard set there with: unfused-fast shard FOLDER"]),
    (
        "train pretrain gone --out OUT",
        "gone",
        ["no such folder", "make a shard set there with: unfused-fast shard FOLDER"],
    ),
    (
        "train pretrain empty --out OUT",
        "empty",
        ["a folder, but not a shard set (no manifest.json)", "pack them first: unfused-fast shard"],
    ),
    (
        "train linear SET --encoder gone --out OUT",
        "gone",
        ["not a run of unfused-fast", "give a directory that train", "or base"],
    ),
    ("train distill SET --teacher gone --out OUT", "gone", ["not a run of unfused-fast", "give a directory that"]),
    ("train linear SET --encoder empty --out OUT", "empty", ["no config.json", "give a directory"]),
]


@pytest.mark.parametrize(("command", "named", "parts"), PATHS)
def test_paths_that_cannot_be_used(
    cli: Cli, tones: Path, tmp_path: Path, command: str, named: str, parts: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file,label\na.wav,dog\n")
    places = {name: tmp_path / name for name in ("gone", "empty", "table.csv", "OUT")} | {"SET": tones}
    refused(cli(*(places.get(word, word) for word in command.split())), places[named], *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "table.csv"}


def test_nothing_usable(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.wav").write_text("this is text\n" * 40)
    (folder / "empty.mp3").touch()
    done = cli("shard", folder, tmp_path / "out", "--workers", 1)
    refused(done, "2 files, none of them usable", "1 empty file", "1 not audio", "nothing was written", "name audio")
    assert list(tmp_path.iterdir()) == [folder]


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
        parts = ["has no tar header", "damaged, or the index belongs to another tar"]
    elif damage == "audio":
        place = data.index(b"WAVEfmt ", len(data) // 2) - 8
        data[place : place + 44] = bytes(44)
        tar.write_bytes(data)
        parts = ["one of train-000000.tar", "cannot be read or decoded", f"check {shards} reports what is wrong"]
    else:
        parts = ["missing" if damage == "missing" else "not a file", "copy the whole set again or pack it again"]
        if damage == "folder":
            tar.mkdir()
    where = shards if damage == "audio" else tar.with_suffix("")
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, where, *parts)
    assert not out.exists()


INDEXES: dict[str, Callable[[list[str]], list[str]]] = {
    "line lost": lambda lines: [f"v1.2 {len(lines) - 2}", *lines[1:-1]],
    "clip twice": lambda lines: [*lines[:5], lines[4], *lines[6:]],
    "other names": lambda lines: [line.replace(".index", ".cls") for line in lines],
    "head": lambda lines: ["v1.1 25", *lines[1:]],
}


@pytest.mark.parametrize("damage", [*INDEXES, "swapped", "no index"])
def test_an_index_that_does_not_fit(
    pretrain: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path, damage: str
) -> None:
    shards = copy_of(tones)
    index = shards / "train-000000.idx"
    if damage in INDEXES:
        index.write_text("\n".join(INDEXES[damage](index.read_text().splitlines())) + "\n")
    elif damage == "swapped":
        index.write_text((shards / "train-000001.idx").read_text())
    else:
        index.unlink()
    refused(pretrain(shards, tmp_path / "out"), index.with_suffix(""), "pack")
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_version(
    pretrain: Cli, linear: Cli, tones: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    shards, out = copy_of(tones), tmp_path / "out"
    manifest = shards / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 1}))
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, manifest, "not a manifest of version 5", "version is 1", "pack the set again with --overwrite")
    manifest.write_text("{")
    refused(pretrain(shards, out), manifest, "cannot be read", "pack it again")
    assert not out.exists()


Rows = list[SourceRow]
ROWS: dict[str, Callable[[Rows], Rows]] = {
    "label lacks in train": lambda rows: [row for row in rows if (row.split, row.label) != ("train", "high")],
    "label in valid alone": lambda rows: [row for row in rows if row.split == "valid" or row.label != "high"],
    "one class": lambda rows: [row for row in rows if row.label == "low"],
    "no label": lambda rows: [replace(row, label=None) for row in rows],
    "one without": lambda rows: [replace(row, label=None) if row is rows[3] else row for row in rows],
    "no train split": lambda rows: rows[-3:],
    "one clip": lambda rows: rows[:1],
}


@pytest.mark.parametrize(
    ("kind", "stage", "said"),
    [
        *(("label lacks in train", stage, "labels that train lacks: high; add such") for stage in ("linear", "all")),
        ("label in valid alone", "linear", "split valid has labels that train lacks: high"),
        ("one class", "linear", "one class only"),
        ("one class", "distill", "names 1 classes, so K is not known; give it with --set pseudo.k=N"),
        *(("no label", stage, "without a label: 60 of 60 clips of split train;") for stage in ("linear", "all")),
        ("no label", "distill", "names 0 classes, so K is not known; give it with --set pseudo.k=N"),
        ("one without", "linear", "without a label: 1 of 60 clips of split train;"),
        ("no train split", "pretrain", "it has no train split (only test); pack one"),
        ("one clip", "pretrain", "the train split has 1 clip; training needs at least 2"),
    ],
)
def test_clips_that_a_stage_cannot_use(
    cli: Cli, tiny: list[str], pretrained: Path, tone_rows: Rows, pack_rows: Cli, tmp_path: Path, kind: str, stage: str,
    said: str,
) -> None:  # fmt: skip
    shards, out = pack_rows(ROWS[kind](tone_rows), tmp_path / "set"), tmp_path / "out"
    more = {"linear": ["--encoder", "random"], "distill": ["--teacher", pretrained]}.get(stage, [])
    own = [*tiny[:2]] if stage == "linear" else [*tiny, "--set", "cluster.k=2"]
    refused(cli("train", stage, shards, "--out", out, *own, *more), said)
    assert not out.exists()


@pytest.mark.parametrize("name", ["-rf.wav", "--help.flac"])
def test_names_that_begin_with_dashes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    for command in ("shard", "embed", "check"):
        done = cli(command, "a.wav", name)
        assert done.code == 2 and f"{name} is a file here, but reads as an option: write ./{name}" in done.err
    assert "is a file here" not in cli("shard", "--nonsense").err
