"""Full disks, losses that are no number, Ctrl-C: what was written stays, and --resume goes on."""

from __future__ import annotations

import errno
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, contents, refused, same_checkpoint

import unfused_fast.stages.linear_heads
import unfused_fast.training.checkpoint
import unfused_fast.training.loop


@pytest.mark.parametrize("where", ["tensors", "json", "bank"])
def test_the_disk_is_full_while_training(
    pretrain: Cli, tones: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import zarr

    out = tmp_path / "out"
    module, name = {
        "tensors": (unfused_fast.training.checkpoint, "save_file"),
        "json": (unfused_fast.training.checkpoint.os, "fsync"),
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
    refused(done, "could not be written", "No space left on device", "free space", "--resume")
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
    real = unfused_fast.training.loop.learning_rate
    monkeypatch.setattr(
        unfused_fast.training.loop,
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_the_epochs(
    linear: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    def signalled(*arguments: Any) -> None:
        signal.raise_signal(sent)

    before = signal.getsignal(sent)
    monkeypatch.setattr(unfused_fast.stages.linear_heads, "train_heads", signalled)
    done = linear(tones, "random", tmp_path / "out")
    said = f"{tmp_path / 'out'}: stopped at once, nothing is saved yet; continue with --resume"
    assert done.code == 130 and done.err.splitlines()[-1] == said and "Traceback" not in done.err
    assert signal.getsignal(sent) == before
    monkeypatch.undo()
    assert linear(tones, "random", tmp_path / "out", "--resume").code == 0
