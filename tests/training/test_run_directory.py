"""Run directories: those that do not fit, that another process uses, and what a kill leaves: nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import Cli, contents, refused, same_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.training.options import Options
from unfused_fast.training.run_directory import LOCK, Run

CALLS = {"as its description gets its name": (Path, "replace"), "as it is flushed": (os, "fsync")}
Given = tuple[str, Config, ShardSet]
OPTIONS, AGAIN = Options(torch.device("cpu")), Options(torch.device("cpu"), overwrite=True)


def test_out_holds_something_else(
    pretrain: Cli, linear: Cli, distill: Cli, tones: Path, pretrained: Path, tmp_path: Path
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
        refused(pretrain(tones, model, *more), model / "config.json", "not the config.json of a run", "name another")
        refused(pretrain(tones, file, *more), file, "cannot be written (File exists)", "another --out")
        refused(pretrain(tones, file / "out", *more), file, "cannot be written (Not a directory)", "another --out")
        refused(distill(tones, pretrained, pretrained, *more), pretrained, "it is the teacher of this run", "--out")
        refused(linear(tones, pretrained, pretrained, *more), pretrained, "it is the encoder of this run", "--out")
        refused(pretrain(tones, tones, *more), tones, "it exists and is not a run")
    refused(pretrain(tones, pretrained), pretrained, "already contains a run", "--resume", "--overwrite", "--out")
    refused(linear(tones, "random", pretrained, "--resume"), pretrained, "holds a run of stage pretrain, not linear")
    assert (contents(tmp_path), contents(pretrained), contents(tones)) == before


def test_a_refused_command_changes_no_run(
    pretrain: Cli, linear: Cli, distill: Cli, tones: Path, unlabelled: Path, unfinished: Path, tmp_path: Path
) -> None:
    """Neither one that resumes another run, nor one that overwrites a run, but whose inputs are not sound."""
    before = contents(unfinished)
    for done in (
        pretrain(tmp_path / "gone", unfinished, "--overwrite"),
        pretrain(tones, unfinished, "--overwrite", "--set", "cluster.k=1000"),
        distill(tones, tmp_path / "gone", unfinished, "--overwrite"),
        linear(tones, tmp_path / "gone", unfinished, "--overwrite"),
    ):
        refused(done)
    done = pretrain(tones, unfinished, "--resume", "--set", "loss.temperature=0.2", "--seed", 5)
    refused(done, unfinished, "loss.temperature was 0.1, now 0.2", "train.seed was 0, now 5", "use the same values")
    refused(pretrain(unlabelled, unfinished, "--resume"), unfinished, "shards was", "another --out")
    done = pretrain(tones, unfinished, "--resume", "--overwrite")
    refused(done, "--resume continues", "--overwrite replaces", "give one of them")
    assert contents(unfinished) == before
    assert pretrain(tones, unfinished, "--overwrite").code == 0


def test_a_checkpoint_that_does_not_fit_the_config(
    pretrain: Cli, linear: Cli, distill: Cli, tones: Path, unfinished: Path, tmp_path: Path
) -> None:
    recorded = unfinished / "config.json"
    text = recorded.read_text()
    recorded.write_text(text.replace('"model.dim": 32', '"model.dim": 48'))
    before = contents(unfinished)
    out, misfit = tmp_path / "out", ["the checkpoint does not fit this config", ", want (", "use the config of the run"]
    refused(distill(tones, unfinished, out), unfinished, *misfit)
    refused(pretrain(tones, unfinished, "--resume", "--set", "model.dim=48"), *misfit)
    assert contents(unfinished) == before and not out.exists()
    for broken, part in (
        (text.replace('"model.dim"', '"model.width"'), "config of another version: unknown fields model.width"),
        (text[:100], "cannot be read"),
        ("[]", "not the config.json of a run"),
        *(
            (json.dumps({**json.loads(text), name: value}), "not the config.json of a run")
            for name, value in (("versions", 5), ("versions", None), ("resumed_with", None), ("resumed_with", 5))
        ),
    ):
        recorded.write_text(broken)
        refused(linear(tones, unfinished, out), unfinished, part)
        refused(pretrain(tones, unfinished, "--resume"), unfinished)


def test_an_encoder_that_is_none(
    linear: Cli, distill: Cli, tones: Path, tmp_path: Path, copy_of: Callable[[Path], Path], pretrained: Path
) -> None:
    evaluated, out = tmp_path / "evaluated", tmp_path / "out"
    assert linear(tones, "logmel", evaluated).code == 0
    for done in (linear(tones, evaluated, out), distill(tones, evaluated, out)):
        refused(done, evaluated, "a run of stage linear", "give one of train pretrain, distill or finetune")
    refused(linear(tones, tones / "manifest.json", out), tones / "manifest.json", "not a run of unfused-fast")
    empty = copy_of(pretrained)
    shutil.rmtree(empty / "checkpoints")
    refused(linear(tones, empty, out), empty, "no usable checkpoint", "there is none", "train again")
    assert not out.exists()


def test_a_damaged_checkpoint(pretrain: Cli, linear: Cli, tones: Path, unfinished: Path, tmp_path: Path) -> None:
    newest, older = (unfinished / f"checkpoints/epoch-{epoch:06d}.safetensors" for epoch in (2, 1))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    flip(newest)
    done = linear(tones, unfinished, tmp_path / "used")
    assert done.code == 0 and f"{newest} is damaged" in done.err and "using the one before it" in done.err
    flip(older)
    before = contents(unfinished)
    refused(pretrain(tones, unfinished, "--resume"), "no usable checkpoint", newest, older, "train again")
    assert contents(unfinished) == before


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_memory_bank(pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path, damage: str) -> None:
    newest, older = (unfinished / f"bank.zarr/gen-{epoch:06d}" for epoch in (2, 1))

    def spoil(generation: Path) -> str:
        shard = generation / "embeddings/c/0/0"
        data = bytearray(shard.read_bytes())
        if damage == "flip":
            data[100] ^= 1
            shard.write_bytes(data)
            return "are not as they were written"
        shutil.rmtree(generation)
        return f"{generation}: it is missing"

    said = spoil(newest)
    done = pretrain(tones, unfinished, "--resume")
    assert done.code == 0 and said in done.err and "resuming from epoch 1" in done.err
    same_checkpoint(unfinished, pretrained)
    (unfinished / "result.json").unlink()
    spoil(newest)
    spoil(older)
    before = contents(unfinished)
    done = pretrain(tones, unfinished, "--resume")
    assert done.code == 1 and "no usable checkpoint" in done.error and "train again" in done.error
    assert str(newest) in done.error and str(older) in done.error
    assert contents(unfinished) == before


def test_a_log_that_was_cut_short(pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path) -> None:
    shutil.rmtree(unfinished / "bank.zarr/gen-000002")
    for kind in ("json", "safetensors"):
        (unfinished / f"checkpoints/epoch-000002.{kind}").unlink()
    log = unfinished / "log.jsonl"
    log.write_text(log.read_text()[:-40])
    assert pretrain(tones, unfinished, "--resume").code == 0
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2]
    board = EventAccumulator(str(unfinished / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2], "the epoch that is trained again counts once"
    same_checkpoint(unfinished, pretrained)


def test_a_run_that_was_stopped_between_its_last_epoch_and_its_result(
    pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path
) -> None:
    assert pretrain(tones, unfinished, "--resume").code == 0
    results = [json.loads((run / "result.json").read_text()) for run in (unfinished, pretrained)]
    assert results[1]["loss"] == results[0]["loss"] and results[0]["clips_per_second"] > 0
    done = pretrain(tones, unfinished, "--resume")
    assert done.code == 0 and "already finished" in done.err


def test_an_overwritten_run_may_lie_behind_a_link(
    pretrain: Cli, tones: Path, unfinished: Path, pretrained: Path, tmp_path: Path
) -> None:
    link, stale = tmp_path / "link", unfinished / "checkpoints/epoch-000009.json"
    link.symlink_to(unfinished)
    stale.write_text("{}")
    assert pretrain(tones, link, "--overwrite").code == 0
    assert not stale.exists()
    same_checkpoint(link, pretrained)


def test_a_second_process_is_refused_and_a_dead_one_is_no_hindrance(
    linear: Cli, tones: Path, given: Given, tmp_path: Path
) -> None:
    out, (reading, told) = tmp_path / "run", os.pipe()
    if not (first := os.fork()):
        try:
            run = Run(out, *given, OPTIONS)
            run.start()
            os.write(told, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)  # or the end of a process that fails before it tells would be waited for in vain
    try:
        assert os.read(reading, 1)
        config = (out / "config.json").read_bytes()
        for flag in ("--resume", "--overwrite"):
            second = linear(tones, "logmel", out, flag)
            assert second.code == 1 and f"process {first} on {socket.gethostname()} is using" in second.error
        assert (out / "config.json").read_bytes() == config
    finally:
        os.close(reading)
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    assert (out / LOCK).exists()
    assert linear(tones, "logmel", out, "--overwrite").code == 0 and (out / "result.json").exists()


@pytest.fixture
def given(tones: Path) -> Given:
    return "linear", preset("recommended", "linear"), open_shards(tones)


def killed_in_start(out: Path, given: Given, options: Options, owner: Any, name: str, number: int) -> None:
    """Starts a run in a process that is killed as it calls a function for the `number`-th time."""
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        return
    try:
        run, listed = Run(out, *given, options), Path.iterdir
        # a file system lists in any order
        Path.iterdir = lambda folder: iter(sorted(listed(folder)))  # type: ignore[method-assign]
        original, calls = getattr(owner, name), 0

        def kill(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given)

        setattr(owner, name, kill)
        run.start()
    finally:
        os._exit(1)


@pytest.mark.parametrize("moment", CALLS)
@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_the_description(given: Given, tmp_path: Path, moment: str, resume: bool) -> None:
    out = tmp_path / "run"
    killed_in_start(out, given, OPTIONS, *CALLS[moment], 1)
    assert {path.name for path in out.iterdir()} == {LOCK, "config.json.new"}
    with Run(out, *given, Options(torch.device("cpu"), resume=resume)) as again:
        again.start()
        again.finish({"valid": 1.0})
    assert {path.name for path in out.iterdir()} == {LOCK, "config.json", "result.json"}


def test_killed_while_an_earlier_run_is_cleared(given: Given, tmp_path: Path) -> None:
    """Whatever is deleted by then."""
    for number in range(1, 6):
        out = tmp_path / str(number)
        with Run(out, *given, OPTIONS) as first:
            first.start()
            for name in ("log.jsonl", "confusion.png", "clusters.png"):
                (out / name).write_text("of the earlier run")
            first.finish({"valid": 1.0})
        killed_in_start(out, given, AGAIN, Path, "unlink", number)
        assert len(list(out.iterdir())) == 6 - number + 1, "one less each time, and the lock"
        with Run(out, *given, AGAIN) as again:
            again.start()
            again.finish({"valid": 0.5})
        assert json.loads((out / "result.json").read_text())["valid"] == 0.5
        assert {path.name for path in out.iterdir()} == {LOCK, "config.json", "result.json"}
