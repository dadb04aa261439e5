"""`base`, the encoder in the package: it loads, it is what every command takes, and it is worth loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from outcomes import Cli, refused
from safetensors.torch import load_file, save_file

import unfused_fast
from unfused_fast.config import preset
from unfused_fast.errors import UserError
from unfused_fast.evaluation.measure import Plan, measure
from unfused_fast.mel import log_mel_statistics
from unfused_fast.models import AudioNTT
from unfused_fast.shards.demo import demo_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.stages import metric_of
from unfused_fast.training.model_folder import encoder_place, to_half

FLOOR = 0.55
"""Test accuracy on the eleven families of the demo's notes, of another font; chance is 0.09 to 0.1. Untrained encoders
of width 16 had 0.54 (README)."""
MOST_BYTES = 12e6


def test_it_beats_an_untrained_encoder_of_its_size(tmp_path: Path) -> None:
    """Log-mels, front end, weights, pooling and heads at once: a fault in any of them would show."""
    shards = pack(demo_rows("instrument-notes"), tmp_path / "set", statistics=log_mel_statistics).shard_set
    encoders = {"base": ["base"], "random": ["random"]}
    clips, found = measure(preset("recommended", "linear"), shards, encoders, Plan(), torch.device("cpu"))
    test = {one.encoder: metric_of(clips, one.rows, one.scores) for one in found}
    assert test["base"] > max(FLOOR, test["random"]), test


def test_what_is_in_the_package() -> None:
    folder = encoder_place("base")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    tensors = load_file(folder / "model.safetensors")
    kinds = {tensor.ndim > 1: tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert kinds == {True: torch.float16, False: torch.float32}
    encoder, card = unfused_fast.load("base", device="cpu"), (folder / "README.md").read_text()
    recorded = json.loads((folder / "config.json").read_text())
    assert encoder.digest in card and isinstance(encoder.encoder, AudioNTT) and "/" not in recorded["shards"]
    assert recorded["inputs"] == {} and recorded["trained"].keys() == {"clips", "epochs"}


def test_every_command_takes_it(cli: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 20000)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    wanted = unfused_fast.load("base", device="cpu").embed(soundfile.read(tmp_path / "a.wav")[0], 16000)
    done = cli("embed", tmp_path / "a.wav", "--out", tmp_path / "a.npz", "--device", "cpu", "--workers", 1)
    assert done.code == 0, done.err
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["embeddings"], wanted, rtol=1e-4, atol=1e-5)
    few = ["--set", "eval.epochs=1", "--json"]
    for command in (
        ("train", "linear", tones, "--encoder", "base", "--out", tmp_path / "linear", *few),
        ("train", "distill", tones, "--teacher", "base", "--out", tmp_path / "student", "--epochs", 1, "--json"),
        ("export", "base", "--hub", tmp_path / "copy", "--json"),
    ):
        done = cli(*command)
        assert done.code == 0, done.err
    assert "base" in done.out or json.loads((tmp_path / "linear" / "result.json").read_text())["encoder"] == "base"
    copied = unfused_fast.load(tmp_path / "copy", device="cpu")
    assert copied.digest == unfused_fast.load("base", device="cpu").digest
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "copy", tmp_path / "base")
    refused(cli("export", "base", "--hub", tmp_path / "other"), "and of a folder here", tmp_path / "base")
    assert cli("export", tmp_path / "base", "--hub", tmp_path / "other").code == 0


def test_sixteen_bits_move_embeddings_by_less_than_a_thousandth(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    folder, waves = tmp_path / "half", torch.randn(8, 32000, generator=torch.Generator().manual_seed(0)) / 10
    assert cli("export", pretrained, "--hub", folder, "--half").code == 0
    whole, half = (unfused_fast.load(place, device="cpu") for place in (pretrained, folder))
    first, second = whole.embed(waves, 16000), half.embed(waves, 16000)
    assert (second - first).norm(dim=1).div(first.norm(dim=1)).max() < 1e-3 and not torch.equal(first, second)
    assert next(iter(half.encoder.parameters())).dtype == torch.float32
    assert cli("export", pretrained, "--onnx", tmp_path / "a.onnx", "--half").code == 2
    torch.nn.init.constant_(whole.encoder.fully_connected[0].weight, 1e5)
    with pytest.raises(UserError, match=r"fully_connected.0.weight: weights beyond the range of float16"):
        to_half(whole.encoder)


def test_other_weights_or_log_mels_than_the_records_are_refused(
    cli: Cli, pretrained: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A run without statistics learned from log-mels as they are; a folder that lacks them cannot be used."""

    def without_statistics(place: Path) -> None:
        record = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**record, "log_mel": None}))

    folder, plain = tmp_path / "model", copy_of(pretrained)
    without_statistics(plain)
    assert cli("export", plain, "--hub", folder).code == 0
    loaded = unfused_fast.load(folder, device="cpu")
    assert (loaded.mean, loaded.std) == (0.0, 1.0) and loaded.digest == unfused_fast.load(plain, device="cpu").digest
    without_statistics(folder)
    refused(cli("export", folder, "--hub", tmp_path / "other"), folder, "no mean and std of log-mels (log_mel)")
    assert cli("export", pretrained, "--hub", folder, "--overwrite").code == 0
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is not the file of config\.json"):
        unfused_fast.load(folder)
