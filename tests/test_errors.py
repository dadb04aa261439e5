"""What goes wrong, and what the user sees: one sentence, exit code 1 or 2, no traceback, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import unfused_fast.checkpoint
import unfused_fast.linear
import unfused_fast.pretrain
import unfused_fast.shards.shard_files

LONGEST = 700
"""Characters of an error. Paths of pytest's folders take a good part of them."""
Cli = Callable[..., Any]


def refused(done: Any, *parts: object) -> None:
    """The command ended with exit code 1 and one short sentence that holds all `parts`."""
    assert done.code == 1, (done.code, done.err)
    missing = [part for part in map(str, parts) if part not in done.error]
    assert not missing, f"{missing} not in: {done.error}"
    assert len(done.error) < LONGEST and done.out == ""


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same_checkpoint(first: Path, second: Path, epoch: int = 2) -> None:
    """Two runs have the same weights, optimiser and generators, bit for bit."""
    name = f"checkpoints/epoch-{epoch:06d}.safetensors"
    one, other = load_file(first / name), load_file(second / name)
    assert set(one) == set(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.fixture
def pretrain(cli: Cli, tiny: list[str]) -> Cli:
    """`pretrain(shards, out, ...)`: two tiny epochs, the settings of the run `pretrained`."""
    return lambda shards, out, *more: cli("train", "pretrain", shards, "--out", out, "--epochs", 2, *tiny, *more)


@pytest.fixture
def distill(cli: Cli, tiny: list[str]) -> Cli:
    return lambda shards, teacher, out, *more: cli(
        "train", "distill", shards, "--teacher", teacher, "--out", out, "--epochs", 1, *tiny, *more
    )


@pytest.fixture
def linear(cli: Cli, tiny: list[str]) -> Cli:
    return lambda shards, encoder, out, *more: cli(
        "train", "linear", shards, "--encoder", encoder, "--out", out, "--epochs", 2, *tiny, *more
    )


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a set or run, to be damaged."""
    return lambda path: Path(shutil.copytree(path, tmp_path / f"copy of {path.name}"))


@pytest.fixture
def unfinished(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """The run `pretrained`, whose result is not yet written."""
    run = copy_of(pretrained)
    (run / "result.json").unlink()
    return run


# --- paths ---


def test_missing_paths(cli: Cli, pretrain: Cli, distill: Cli, linear: Cli, tones: Path, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone", tmp_path / "out"
    refused(cli("shard", gone, out), gone, "no such file or folder", "name a folder of audio or a CSV")
    refused(cli("report", gone), gone, "does not exist", "give directories that unfused-fast train wrote")
    refused(cli("train", "all", gone, "--out", out), gone, "no such folder", "unfused-fast shard")
    for done in (pretrain(gone, out), linear(gone, "random", out), distill(gone, gone, out)):
        refused(done, gone, "no such folder", "unfused-fast shard SOURCE")
    for done in (linear(tones, gone, out), distill(tones, gone, out)):
        refused(done, gone, "no run of unfused-fast", "give a directory that train pretrain or distill wrote")
    done = cli("check", gone)
    assert done.code == 1 and "no such folder" in done.out
    assert list(tmp_path.iterdir()) == []


def test_empty_folders(cli: Cli, pretrain: Cli, linear: Cli, tones: Path, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    refused(cli("shard", empty, out), empty, "no files in this folder", "name a folder that holds audio")
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

    monkeypatch.setattr("unfused_fast.report.collect_results", broken)
    done = cli("report", tmp_path)
    assert done.code == 70 and "ZeroDivisionError: by zero (this is a fault of unfused-fast; --debug" in done.error


# --- shard sets ---


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
        parts = ["has no header", "pack again"]
    elif damage == "audio":
        place = data.index(b"WAVEfmt ", len(data) // 2) - 8
        data[place : place + 44] = bytes(44)
        tar.write_bytes(data)
        parts = ["a shard of split train could not be decoded", "unfused-fast check names it"]
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
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 2}))
    for done in (pretrain(shards, out), linear(shards, "random", out)):
        refused(done, manifest, "schema version 2", "reads version 1", "pack the set again with: unfused-fast shard")
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


# --- flags and settings ---


def test_more_clusters_than_clips(pretrain: Cli, distill: Cli, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = pretrain(tones, out, "--set", "cluster.k=1000")
    refused(done, "cluster.k = 1000", "60 clips", "--set cluster.k=auto, or a number up to 60")
    done = distill(tones, pretrained, out, "--set", "pseudo.k=1000")
    refused(done, "pseudo.k = 1000", "60 clips", "--set pseudo.k=N with N up to 60")
    assert not out.exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(
    pretrain: Cli, linear: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    out = tmp_path / "out"
    for done in (pretrain(tones, out, "--device", device), linear(tones, "random", out, "--device", device)):
        refused(done, f"--device {device}:", "sees no CUDA device here", "use --device cpu", "unfused-fast doctor")
    assert not out.exists()


@pytest.mark.parametrize("device", ["gpu", "xpu", "cuda:x", ""])
def test_a_device_that_no_one_knows(pretrain: Cli, tones: Path, tmp_path: Path, device: str) -> None:
    refused(pretrain(tones, tmp_path / "out", "--device", device), f"--device {device}:", "auto, cpu, cuda or cuda:N")


def test_a_back_end_that_cannot_run_here(pretrain: Cli, tones: Path, tmp_path: Path) -> None:
    done = pretrain(tones, tmp_path / "out", "--set", "cluster.backend=triton")
    refused(done, "cluster.backend = triton", "the device is cpu", "use torch or auto")
    done = pretrain(tones, tmp_path / "out", "--set", "cluster.backend=faiss")
    refused(done, "cluster.backend=faiss", "one of auto, torch, triton")
    assert not (tmp_path / "out").exists()


def test_no_dali(pretrain: Cli, linear: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    out = tmp_path / "out"
    for done in (pretrain(tones, out), linear(tones, "random", out)):
        refused(done, "DALI is not installed", "pip install 'unfused-fast[cpu]'", "unfused-fast doctor")
    assert not out.exists()


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("cluster", ["--set cluster: want section.field=value", "unfused-fast config"]),
        ("cluster=3", ["that is a section", "name a field of it: k, iterations"]),
        ("clusters.k=3", ["there is no field 'clusters'", "cluster", "unfused-fast config"]),
        ("cluster.size=3", ["there is no field 'size'", "here are: k, iterations"]),
        ("cluster.k.x=3", ["'k' is a value, not a section"]),
        ("cluster.k=many", ["--set cluster.k=many: want a whole number or auto"]),
        ("cluster.k=2.5", ["want a whole number or auto"]),
        ("cluster.k=0", ["cluster.k = 0", "want at least 1, or auto"]),
        ("train.epochs=0", ["train.epochs = 0", "greater than 0"]),
        ("optim.lr=fast", ["--set optim.lr=fast: want a number"]),
        ("optim.lr=nan", ["optim.lr = nan", "greater than 0"]),
        ("optim.name=adam", ["one of larc, sgd, adamw"]),
        ("views.same_crop=perhaps", ["true or false"]),
        ("aug.rrc.freq_scale=1", ["numbers between commas"]),
        ("frontend.n_mels=60", ["frontend.n_mels = 60", "multiple of 8"]),
    ],
)
def test_settings(pretrain: Cli, tones: Path, tmp_path: Path, setting: str, parts: list[str]) -> None:
    refused(pretrain(tones, tmp_path / "out", "--set", setting), *parts)
    assert not (tmp_path / "out").exists()


# --- run directories ---


def test_out_holds_something_else(
    cli: Cli, pretrain: Cli, linear: Cli, distill: Cli, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    notes, model, file = tmp_path / "notes", tmp_path / "model", tmp_path / "file"
    notes.mkdir()
    (notes / "diary.txt").write_text("dear diary")
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "somebody else\'s"}')
    file.write_text("text")
    before = contents(tmp_path), contents(pretrained), contents(tones)
    for more in ([], ["--resume"], ["--overwrite"]):
        refused(pretrain(tones, notes, *more), notes, "it exists and is not a run", "choose another --out")
        refused(linear(tones, "random", notes, *more), notes, "it exists and is not a run")
        refused(pretrain(tones, model, *more), model / "config.json", "not that of a run", "name another directory")
        refused(pretrain(tones, file, *more), file, "is a file, but a run is a directory", "another --out")
        refused(pretrain(tones, file / "out", *more), file, "is a file, but a run is a directory", "another --out")
        refused(distill(tones, pretrained, pretrained, *more), pretrained, "it is the teacher of this run", "--out")
        refused(linear(tones, pretrained, pretrained, *more), pretrained, "it is the encoder of this run", "--out")
        refused(pretrain(tones, tones, *more), tones, "it exists and is not a run")
    refused(pretrain(tones, pretrained), pretrained, "there is a run already", "--resume", "--overwrite", "--out")
    refused(linear(tones, "random", pretrained, "--resume"), pretrained, "holds a run of stage pretrain, not linear")
    refused(cli("shard", notes, tones), tones, "a shard set is already there", "--overwrite")
    assert (contents(tmp_path), contents(pretrained), contents(tones)) == before


def test_overwrite_keeps_the_old_run_until_the_inputs_are_sound(
    pretrain: Cli, linear: Cli, distill: Cli, tones: Path, unfinished: Path, tmp_path: Path
) -> None:
    before = contents(unfinished)
    for done in (
        pretrain(tmp_path / "gone", unfinished, "--overwrite"),
        pretrain(tones, unfinished, "--overwrite", "--set", "cluster.k=1000"),
        distill(tones, tmp_path / "gone", unfinished, "--overwrite"),
        linear(tones, tmp_path / "gone", unfinished, "--overwrite"),
    ):
        refused(done)
    assert contents(unfinished) == before
    assert pretrain(tones, unfinished, "--overwrite").code == 0


def test_resume_and_overwrite(pretrain: Cli, tones: Path, unfinished: Path) -> None:
    before = contents(unfinished)
    done = pretrain(tones, unfinished, "--resume", "--overwrite")
    refused(done, "--resume goes on", "--overwrite replaces", "give one of them")
    assert contents(unfinished) == before


def test_resume_with_other_settings_or_another_set(
    pretrain: Cli, tones: Path, unlabelled: Path, unfinished: Path
) -> None:
    before = contents(unfinished)
    done = pretrain(tones, unfinished, "--resume", "--set", "loss.temperature=0.2", "--seed", 5)
    refused(done, unfinished, "loss.temperature was 0.1, now 0.2", "train.seed was 0, now 5", "use the same values")
    refused(pretrain(unlabelled, unfinished, "--resume"), unfinished, "shards was", "another --out")
    assert contents(unfinished) == before


def test_a_checkpoint_that_does_not_fit_the_config(
    pretrain: Cli, linear: Cli, distill: Cli, tones: Path, unfinished: Path, tmp_path: Path
) -> None:
    recorded = unfinished / "config.json"
    text = recorded.read_text()
    recorded.write_text(text.replace('"model.dim": 32', '"model.dim": 48'))
    before = contents(unfinished)
    out, misfit = tmp_path / "out", ["the checkpoint does not fit this config", "shape ", "use the config of the run"]
    refused(linear(tones, unfinished, out), unfinished, *misfit)
    refused(distill(tones, unfinished, out), unfinished, *misfit)
    refused(pretrain(tones, unfinished, "--resume"), unfinished, "model.dim was 48, now 32")
    refused(pretrain(tones, unfinished, "--resume", "--set", "model.dim=48"), *misfit)
    assert contents(unfinished) == before and not out.exists()
    for broken, part in (
        (text.replace('"model.dim"', '"model.width"'), "missing fields ['model.dim'], unknown fields ['model.width']"),
        (text[:100], "cannot be read"),
        ("[]", "not that of a run"),
    ):
        recorded.write_text(broken)
        refused(linear(tones, unfinished, out), unfinished, part)


def test_an_encoder_that_is_none(
    linear: Cli, distill: Cli, tones: Path, tmp_path: Path, copy_of: Callable[[Path], Path], pretrained: Path
) -> None:
    evaluated, out = tmp_path / "evaluated", tmp_path / "out"
    assert linear(tones, "logmel", evaluated).code == 0
    for done in (linear(tones, evaluated, out), distill(tones, evaluated, out)):
        refused(done, evaluated, "a run of stage linear", "give one of train pretrain or train distill")
    refused(linear(tones, tones / "manifest.json", out), tones / "manifest.json", "no run of unfused-fast")
    empty = copy_of(pretrained)
    shutil.rmtree(empty / "checkpoints")
    refused(linear(tones, empty, out), empty, "no usable checkpoint", "there is none", "train again")
    assert not out.exists()


def test_a_damaged_checkpoint(
    pretrain: Cli, linear: Cli, tones: Path, unfinished: Path, pretrained: Path, tmp_path: Path
) -> None:
    newest, older = (unfinished / f"checkpoints/epoch-{epoch:06d}.safetensors" for epoch in (2, 1))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    flip(newest)
    done = linear(tones, unfinished, tmp_path / "used")
    assert done.code == 0 and f"{newest} is damaged" in done.err and "using the one before it" in done.err
    done = pretrain(tones, unfinished, "--resume")
    assert done.code == 0 and f"{newest} is damaged" in done.err and "going on from epoch 1" in done.err
    same_checkpoint(unfinished, pretrained)
    (unfinished / "result.json").unlink()
    flip(newest)
    flip(older)
    before = contents(unfinished)
    refused(pretrain(tones, unfinished, "--resume"), "no usable checkpoint", newest, older, "train again")
    assert contents(unfinished) == before


def test_a_damaged_memory_bank(pretrain: Cli, tones: Path, unfinished: Path) -> None:
    generation = unfinished / "bank.zarr/gen-000002"
    chunk = next(path for path in sorted(generation.glob("embeddings/c/**/*")) if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    refused(pretrain(tones, unfinished, "--resume"), generation, "does not have the digest", "--overwrite")
    chunk.write_bytes(data[:50])
    refused(pretrain(tones, unfinished, "--resume"), generation, "--overwrite")
    shutil.rmtree(generation)
    refused(pretrain(tones, unfinished, "--resume"), generation, "is missing", "--overwrite")


def test_a_log_that_was_cut_short(pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path) -> None:
    shutil.rmtree(unfinished / "bank.zarr/gen-000002")
    for kind in ("json", "safetensors"):
        (unfinished / f"checkpoints/epoch-000002.{kind}").unlink()
    log = unfinished / "log.jsonl"
    log.write_text(log.read_text()[:-40])
    assert pretrain(tones, unfinished, "--resume").code == 0
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2]
    same_checkpoint(unfinished, pretrained)


def test_a_run_that_was_stopped_between_its_last_epoch_and_its_result(
    pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path
) -> None:
    assert pretrain(tones, unfinished, "--resume").code == 0
    results = [json.loads((run / "result.json").read_text()) for run in (unfinished, pretrained)]
    assert round(results[1]["loss"], 6) == results[0]["loss"] and results[0]["clips_per_second"] > 0
    done = pretrain(tones, unfinished, "--resume")
    assert done.code == 0 and "finished already" in done.err


def test_an_overwritten_run_may_lie_behind_a_link(
    pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path, tmp_path: Path
) -> None:
    link, stale = tmp_path / "link", unfinished / "checkpoints/epoch-000009.json"
    link.symlink_to(unfinished)
    stale.write_text("{}")
    assert pretrain(tones, link, "--overwrite").code == 0
    assert not stale.exists()
    same_checkpoint(link, pretrained)


def test_report_of_what_is_no_result(cli: Cli, tmp_path: Path) -> None:
    result = tmp_path / "run/result.json"
    result.parent.mkdir()
    for text, part in (("{", "cannot be read"), ('{"score": 3}', "not the result of a run"), ("[]", "not the result")):
        result.write_text(text)
        refused(cli("report", tmp_path), result, part)


# --- what happens on the way ---


def test_the_disk_is_full_while_packing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone_rows: list[Any]
) -> None:
    folder, out = tone_rows[0].path.parent, tmp_path / "out"
    add = unfused_fast.shards.shard_files.ShardWriter.add

    def full(writer: Any, key: str, members: Any) -> None:
        if key.endswith("30"):
            raise OSError(errno.ENOSPC, "No space left on device")
        add(writer, key, members)

    with monkeypatch.context() as patch:
        patch.setattr(unfused_fast.shards.shard_files.ShardWriter, "add", full)
        done = cli("shard", folder, out, "--workers", 1)
        refused(done, tmp_path, "No space left on device", f"nothing at {out} was touched", "make room")
        assert list(tmp_path.iterdir()) == []
    assert cli("shard", folder, out, "--workers", 1).code == 0
    before = contents(out)
    monkeypatch.setattr(unfused_fast.shards.shard_files.ShardWriter, "add", full)
    refused(cli("shard", folder, out, "--workers", 1, "--overwrite"), "No space left on device")
    assert contents(out) == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("where", ["tensors", "json", "bank"])
def test_the_disk_is_full_while_training(
    pretrain: Cli, tones: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import zarr

    out = tmp_path / "out"
    module, name = {
        "tensors": (unfused_fast.checkpoint, "save_file"),
        "json": (unfused_fast.checkpoint.os, "fsync"),
        "bank": (zarr.Group, "create_array"),
    }[where]
    real = getattr(module, name)

    def full(*arguments: Any, **named: Any) -> Any:
        if not (out / "checkpoints/epoch-000001.json").exists():
            return real(*arguments, **named)
        if where == "tensors":
            arguments[1].write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        done = pretrain(tones, out)
    refused(done, "disk is full" if where == "bank" else "No space left on device", "free space", "--resume")
    assert not list(out.rglob("*.partial"))
    before = contents(out / "checkpoints")
    assert {"epoch-000001.json", "epoch-000001.safetensors"} <= set(before) and "epoch-000002.json" not in before
    assert pretrain(tones, out, "--resume").code == 0
    same_checkpoint(out, pretrained)
    assert contents(out / "checkpoints")["epoch-000001.safetensors"] == before["epoch-000001.safetensors"]


def test_a_loss_that_becomes_nan(pretrain: Cli, distill: Cli, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    out, absurd = tmp_path / "out", ["--set", "optim.name=sgd", "--set", "optim.lr=1e30"]
    for done in (pretrain(tones, out, *absurd), distill(tones, pretrained, out, *absurd)):
        refused(
            done, "epoch 1: the loss became nan; nothing was saved", "learning rate is too high", "optim.lr = 1e+30"
        )
        assert "--overwrite --set optim.lr=1e+29" in done.error
        assert not out.exists()


@pytest.mark.parametrize("step", [4, 5])
def test_a_loss_that_becomes_nan_later(
    pretrain: Cli, tones: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Three steps an epoch: the weights break in the middle of the second epoch, or in its last step."""
    real = unfused_fast.pretrain.learning_rate
    monkeypatch.setattr(
        unfused_fast.pretrain,
        "learning_rate",
        lambda config, now, *more: math.inf if now == step else real(config, now, *more),
    )
    out = tmp_path / "out"
    done = pretrain(tones, out)
    what = "the loss became nan" if step == 4 else "the network's weights are not finite"
    refused(done, f"epoch 2: {what}; epoch 1 is the last one saved", "learning rate is too high", "start again")
    same_checkpoint(out, pretrained, epoch=1)
    assert not (out / "checkpoints/epoch-000002.json").exists()
    monkeypatch.undo()
    assert pretrain(tones, out, "--resume").code == 0
    same_checkpoint(out, pretrained)


def test_ctrl_c_outside_the_epochs(linear: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unfused_fast.linear, "train_heads", pressed)
    done = linear(tones, "random", tmp_path / "out")
    assert done.code == 130 and done.err.splitlines()[-1] == "interrupted" and "Traceback" not in done.err
    monkeypatch.undo()
    assert linear(tones, "random", tmp_path / "out").code == 0


def test_a_rejected_file_does_not_stop_the_others(cli: Cli, tone_rows: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    signal, rate = soundfile.read(tone_rows[0].path)
    soundfile.write(folder / "good.wav", signal, rate)
    (folder / "bad.wav").write_bytes(b"RIFF")
    done = cli("shard", folder, tmp_path / "out", "--workers", 1)
    assert done.code == 0 and "1 clips" in done.out and "rejected 1: not audio" in done.out
