"""Disks that fill up, shards that go away, memory that runs out, checkpoints that rot, in the middle of an epoch."""

from __future__ import annotations

import errno
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import Cli, refused
from same_runs import assert_same_run
from stopping import after_calls, after_steps, signalled_after

import unfused_fast.training.checkpoint
import unfused_fast.training.loop
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training.loop import Trainer

STREAMED = ["--data", "stream", "--set", "train.batch_size=4"]


@pytest.fixture(scope="module")
def streamed(
    cli: Cli, tone_rows: list[SourceRow], tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A set of FLAC, to be spoilt and repaired, and an undisturbed run on it with the flags STREAMED."""
    folder = tmp_path_factory.mktemp("streamed")
    pack(tone_rows, folder / "set", workers=0, codec="flac", clips_per_shard=25, statistics=log_mel_statistics)
    done = cli("train", "pretrain", folder / "set", "--out", folder / "whole", "--epochs", 2, *tiny, *STREAMED)
    assert done.code == 0, done.err
    return folder / "set", folder / "whole"


@pytest.fixture(scope="module")
def stopped(cli: Cli, tones: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the settings of `pretrained` that was stopped in its second epoch, saved after each step."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with signalled_after(5):
        flags = ["--epochs", 2, *tiny, "--save-every", "1steps"]
        assert cli("train", "pretrain", tones, "--out", out, *flags).code == 130
    return out


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_for_a_while(
    pretrain: Cli, tones: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves after steps 3 to 5 fail; the run goes on, says so, and ends as the undisturbed one."""
    with (
        monkeypatch.context() as patch,
        after_steps(2, lambda: patch.setattr("unfused_fast.training.checkpoint.save_file", full)),
    ):
        real = unfused_fast.training.checkpoint.save_file
        with after_steps(5, lambda: patch.setattr("unfused_fast.training.checkpoint.save_file", real)):
            done = pretrain(tones, tmp_path / "out", "--save-every", "1steps")
    assert done.code == 0 and "not saved, training continues" in done.err and "No space left on device" in done.err
    assert_same_run(tmp_path / "out", pretrained)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_shard_that_cannot_be_read_in_a_pass_over_the_clips(
    pretrain: Cli, streamed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of the second epoch; the end of the first was not to be saved."""
    (shards, _), out = streamed, tmp_path / "out"
    command = [out, *STREAMED, "--set", "bank.fill=pass", "--save-every", "9epochs"]
    tar = min(shards.glob("train-*.tar"))
    with after_calls(Trainer, "_end_epoch", 1, lambda: tar.rename(tmp_path / tar.name)):
        done = pretrain(shards, *command)
    refused(done, f"{tar}: ", "; epoch 1 is the last one saved, continue with --resume once that is fixed")
    (tmp_path / tar.name).rename(tar)
    resumed = pretrain(shards, *command, "--resume")
    assert resumed.code == 0 and "resuming after epoch 1" in resumed.err, resumed.err


@pytest.mark.parametrize("how", ["truncated", "gone", "garbled"])
def test_a_shard_that_cannot_be_read_any_more(
    pretrain: Cli, streamed: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    """Files that are open are read to the end of the epoch; content that cannot be decoded ends it at once."""
    (shards, whole), out = streamed, tmp_path / "out"
    tars = sorted(shards.glob("train-*.tar"))
    kept = {tar: tar.read_bytes() for tar in tars}

    def spoil() -> None:
        for tar in tars:
            if how == "garbled":
                with tar.open("r+b") as file:
                    file.write(bytes(len(kept[tar])))
                continue
            tar.unlink()
            if how == "truncated":
                tar.write_bytes(kept[tar][:1000])

    with after_steps(4, spoil):
        done = pretrain(shards, out, *STREAMED)
    refused(done, "saved, continue with --resume once that is fixed", f"unfused-fast check {shards}")
    position = "batch [0-9]+ of epoch 1" if how == "garbled" else "epoch 1"
    assert re.search(
        rf"train-00000[0-2].tar.* cannot be read or decoded.*; {position} is the last one saved", done.error
    ), done.error
    for tar in tars:
        tar.unlink(missing_ok=True)
        tar.write_bytes(kept[tar])
    assert pretrain(shards, out, *STREAMED, "--resume").code == 0
    assert_same_run(out, whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign", "remove"])
def test_a_damaged_checkpoint_within_an_epoch(
    pretrain: Cli, tones: Path, pretrained: Path, stopped: Path, copy_of: Callable[[Path], Path], damage: str
) -> None:
    out = copy_of(stopped)
    newest, older = (out / f"checkpoints/epoch-000001-batch-00000000{batch}.safetensors" for batch in (2, 1))
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    if damage == "foreign":
        data = bytearray(older.read_bytes())
    newest.write_bytes(data[: len(data) // 3] if damage == "truncate" else data)
    if damage == "remove":
        newest.unlink()
    done = pretrain(tones, out, "--resume")
    assert done.code == 0 and f"{newest} is damaged" in done.err and "resuming from batch 1 of epoch 2" in done.err
    assert_same_run(out, pretrained)
    assert not newest.exists()


def test_losses_that_are_no_numbers(
    pretrain: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights break in the fifth of fifteen steps: the run ends in the middle of the epoch, at the next save or after
    some steps, whichever comes first.
    """
    real = unfused_fast.training.loop.learning_rate
    monkeypatch.setattr(
        unfused_fast.training.loop,
        "learning_rate",
        lambda config, now, *more: math.inf if now == 4 else real(config, now, *more),
    )
    monkeypatch.setattr(unfused_fast.training.loop, "READ_EVERY", 10)
    steps = list[int]()
    original = Trainer.train_batch
    monkeypatch.setattr(Trainer, "train_batch", lambda self, *given: (steps.append(1), original(self, *given))[1])
    for flags, kept, taken in (
        (["--save-every", "1epochs"], "nothing was saved", 10),
        (["--save-every", "2steps"], "batch 4 of epoch 1 is the last one saved", 6),
    ):
        steps.clear()
        done = pretrain(tones, tmp_path / str(taken), "--set", "train.batch_size=4", *flags)
        refused(done, f"epoch 1: the loss became nan; {kept}", "learning rate is too high", "start again")
        assert len(steps) == taken


def test_a_device_without_memory(pretrain: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.")

    with after_steps(2, out_of_memory):
        done = pretrain(tones, tmp_path / "out")
    refused(done, "not enough memory for batches of 16 clips (CUDA out of memory)", "--set train.batch_size=8")


@pytest.mark.gpu
def test_a_gpu_without_memory(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--device", "cuda", "--no-compile", "--set", "model.channels=512", "--set", "train.batch_size=60"]
    torch.cuda.empty_cache()  # what other tests left there would do
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        done = cli("train", "pretrain", tones, "--out", tmp_path / "out", *tiny, *flags)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    refused(done, "not enough memory for batches of 60 clips (CUDA out of memory)", "--set train.batch_size=30")


SMALL_DISK = """
mount -t tmpfs -o size=64m tmpfs "$1" || exit 42
out="$1/out" python="$2" said="$3" copied="$4"; shift 4
"$python" -m unfused_fast "$@" --out "$out" 2> "$said" & run=$!
until [ -s "$out/log.jsonl" ]; do kill -0 $run || exit 43; sleep 0.05; done
cat /dev/zero > "$out/../ballast" 2> /dev/null
until grep -q "not saved" "$said"; do kill -0 $run || exit 44; sleep 0.05; done
rm "$out/../ballast"
wait $run || exit 45
cp -r "$out" "$copied"
"""


@pytest.mark.soak
def test_a_disk_that_is_really_full(pretrain: Cli, tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """A file system of its own, filled to the last byte while the run is at work, then emptied."""
    disk, said, copied = tmp_path / "disk", tmp_path / "said", tmp_path / "copied"
    disk.mkdir()
    flags = ["train", "pretrain", tones, "--epochs", "30", "--save-every", "2steps", *tiny]
    script = ["unshare", "-Urm", "sh", "-c", SMALL_DISK, "sh", disk, sys.executable, said, copied, *flags]
    try:
        done = subprocess.run([str(word) for word in script], capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 42 or "unshare:" in done.stderr:
        pytest.skip(f"no file system of its own can be had here: {done.stderr.strip()[-100:]}")
    told = said.read_text()
    assert done.returncode == 0, (done.returncode, done.stderr, told)
    assert "not saved, training continues" in told and "No space left on device" in told and "Traceback" not in told
    assert pretrain(tones, tmp_path / "whole", "--epochs", 30).code == 0
    assert_same_run(copied, tmp_path / "whole")
