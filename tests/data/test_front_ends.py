"""Front ends, edges, normalisations: DALI and torch against librosa and numpy, and each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unfused_fast.config.audio import FrontendConfig
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.augment import TENSOR, Augmenter, RunningNorm, final_statistics
from unfused_fast.data.front_end import log_mel, set_statistics
from unfused_fast.data.stream import Loader
from unfused_fast.embedding.embedder import Embedder, load
from unfused_fast.embedding.export import export_graph
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import baseline_encoder, extract

CPU = torch.device("cpu")
NO_MASKS = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
DECAR1 = {"frontend.kind": "decar1"}
ZEROS = {"frontend.pad_mode": "constant"}
Array = NDArray[np.float32]
Noise = tuple[ShardSet, list[Array]]


def test_log_mel_is_librosas(librosas: Callable[..., Array]) -> None:
    generator = np.random.default_rng(0)
    for samples in (700, 15200, 16000, 25601):
        waveform = (generator.standard_normal(samples) * 0.1).astype(np.float32)
        found = log_mel(torch.from_numpy(waveform)).numpy()
        assert found.shape == (64, 1 + samples // 160)
        np.testing.assert_allclose(found, librosas(waveform), atol=1e-4)


def test_statistics_are_those_of_all_bins_and_frames_of_the_middle(librosas: Callable[..., Array]) -> None:
    generator = np.random.default_rng(1)
    clips = [(generator.standard_normal(samples) * 3000).astype(np.int16) for samples in (4000, 16000, 9000, 50001)]
    middles = [*clips[:3], clips[3][17000:33000]]
    values = np.concatenate([librosas(clip.astype(np.float32) / 32768).ravel() for clip in middles])
    found = log_mel_statistics(iter(clips))
    assert found["clips"] == 4
    np.testing.assert_allclose([found["mean"], found["std"]], [values.mean(), values.std()], atol=1e-4)


def test_decar1_is_normalised_by_its_own_statistics(wav_noise: Noise, librosas: Callable[..., Array]) -> None:
    shards, waveforms = wav_noise
    frontend = FrontendConfig(kind="decar1")
    measured = set_statistics(shards, frontend)
    middles = [wave[max(0, (len(wave) - 16000) // 2) :][:16000] for wave in waveforms]
    values = np.concatenate([librosas(wave, "decar1").ravel() for wave in middles])
    assert measured is not None and measured["clips"] == len(waveforms)
    np.testing.assert_allclose([measured["mean"], measured["std"]], [values.mean(), values.std()], atol=1e-3)
    loader = Loader(shards, "train", with_values(Config(), DECAR1), device=CPU, batch_size=8)
    assert (loader.mean, loader.std) == (measured["mean"], measured["std"])
    assert set_statistics(shards, FrontendConfig()) == shards.manifest.log_mel


@pytest.mark.parametrize("values", [DECAR1, ZEROS, {**DECAR1, **ZEROS}, {"data.norm": "wave_l2"}])
def test_embeddings_of_waveforms_are_those_of_the_shards(wav_noise: Noise, values: dict[str, str]) -> None:
    """The embedder's own way from a waveform to a log-mel, against the loader's."""
    shards, waveforms = wav_noise
    small = {"model.channels": 4, "model.dim": 16}
    encoder = baseline_encoder("random", with_values(Config(), {"data.norm": "none", **small, **values}), CPU)
    wanted = extract(encoder, shards, "train", "encoder", "maxmean", CPU)
    found = Embedder(encoder).embed([torch.from_numpy(wave) for wave in waveforms], 16000)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


def test_a_running_norm_is_the_mean_and_deviation_of_all_crops_so_far() -> None:
    generator, norm = np.random.default_rng(2), RunningNorm(CPU)
    seen: list[Array] = []
    for size in (5, 3, 4):
        crops = (generator.standard_normal((size, 1, 6, 7)) * 3 - 8).astype(np.float32)
        second = crops + 1
        seen.append(crops)
        made = norm((torch.from_numpy(crops), torch.from_numpy(second)))
        values = np.concatenate(seen).astype(np.float64)
        for found, given in zip(made, (crops, second), strict=True):
            np.testing.assert_allclose(found.numpy(), (given - values.mean()) / values.std(), atol=1e-5)
    kept = norm.moments.clone()
    norm((torch.full((2, 1, 6, 7), 100.0),), learn=False)
    assert torch.equal(norm.moments, kept)
    # on top of statistics known before: x = mean + std * y, so plain values have these
    after = final_statistics({"mean": -4.0, "std": 2.0, "clips": 9}, {TENSOR: norm.moments})
    assert after == {"mean": pytest.approx(-4 + 2 * values.mean()), "std": pytest.approx(2 * values.std()), "clips": 9}
    assert final_statistics({"mean": 1.0, "std": 2.0}, {}) == {"mean": 1.0, "std": 2.0}
    assert final_statistics(None, {}) is None


def test_a_running_norm_does_not_depend_on_the_statistics_before_it(wav_noise: Noise) -> None:
    config = with_values(
        Config(), {"data.norm": "running", "aug.mixup.ratio": 0, "aug.rrc.enabled": "false", **NO_MASKS}
    )
    made = []
    for statistics in ({"mean": 0.0, "std": 1.0}, {"mean": -7.0, "std": 3.0}):
        loader = Loader(wav_noise[0], "train", config, device=CPU, batch_size=8, statistics=statistics)
        augment = Augmenter(config, 53, CPU)
        made.append([augment(batch.clip_ids, batch.views, batch.draws)[0] for batch in loader.epoch(1)])
    for first, second in zip(*made, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_a_run_with_a_running_norm_hands_on_what_it_ended_with(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, flags = tmp_path / "run", ["--set", "data.norm=running"]
    assert cli("train", "pretrain", tones, "--out", run, "--epochs", 1, *tiny, *flags).code == 0
    assert cli("export", run, "--hub", tmp_path / "model").code == 0
    embedders = [load(folder, device="cpu") for folder in (run, tmp_path / "model")]
    assert (embedders[0].mean, embedders[0].std) == (embedders[1].mean, embedders[1].std)
    recorded = json.loads((run / "config.json").read_text())
    of_the_set = recorded["log_mel"]
    assert embedders[0].mean != of_the_set["mean"]
    assert abs(embedders[0].mean - of_the_set["mean"]) < of_the_set["std"]


def test_an_exported_graph_has_the_runs_own_front_end(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, flags = tmp_path / "run", ["--set", "data.norm=wave_l2", "--set", "frontend.kind=decar1"]
    assert cli("train", "pretrain", tones, "--out", run, "--epochs", 1, *tiny, *flags).code == 0
    export_graph(run, tmp_path / "graph.pt2", "torch", "waveform")
    waveform = torch.randn(2, 20000, generator=torch.Generator().manual_seed(0)) * 0.1
    found = torch.export.load(tmp_path / "graph.pt2").module()(waveform)
    embedder = load(run, device="cpu")
    torch.testing.assert_close(found, embedder.embed(waveform, 16000), atol=1e-4, rtol=1e-3)
    louder = embedder.embed(3 * waveform, 16000)
    torch.testing.assert_close(found, louder, atol=1e-4, rtol=1e-3)
    refused = cli("embed", tones, "--encoder", run, "--out", tmp_path / "all.npz", "--device", "cpu")
    assert refused.code == 1 and "data.norm = wave_l2" in refused.error
