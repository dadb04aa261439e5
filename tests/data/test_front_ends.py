"""Front ends, edges, normalisations besides the default: DALI and torch against librosa and numpy, and each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import librosa
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from unfused_fast.config.audio import FrontendConfig
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.augment import Augmenter
from unfused_fast.data.front_end import log_mel, mel_filters, unit_norm
from unfused_fast.data.normalisation import RunningNorm, final_statistics
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.statistics import set_statistics
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.embedding.embedder import Embedder, load
from unfused_fast.embedding.export import export_graph
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import baseline_encoder, extract

CPU, CLIPS = torch.device("cpu"), 25
NO_MASKS = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
DECAR1 = {"frontend.kind": "decar1"}
ZEROS = {"frontend.pad_mode": "constant"}
Array = NDArray[np.float32]
Noise = tuple[ShardSet, list[Array]]
Engine = Literal["dali", "torch"]
ENGINES = pytest.mark.parametrize("engine", ["dali", "torch"])


@pytest.fixture(scope="module", params=["wav", "flac"])
def noise(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Noise:
    """25 clips of 0.3 to 2 s in two shards, and their waveforms by clip id."""
    folder, generator, rows = tmp_path_factory.mktemp("noise"), np.random.default_rng(0), []
    for number in range(CLIPS):
        pcm = generator.standard_normal(int(generator.integers(4800, 32000))) * generator.uniform(30, 3000)
        soundfile.write(folder / f"{number}.wav", pcm.astype(np.int16), 16000, subtype="PCM_16")
        rows.append(SourceRow(folder / f"{number}.wav", f"{number}.wav"))
    made = pack(rows, folder / "set", codec=request.param, workers=0, clips_per_shard=15, statistics=log_mel_statistics)
    sources = made.shard_set.clips.column("source").to_pylist()
    return made.shard_set, [soundfile.read(folder / source, dtype="float32")[0] for source in sources]


def librosas(waveform: Array, kind: str, pad_mode: str) -> Array:
    """The log-mel by librosa's own functions."""
    decar = kind == "decar1"
    mel = librosa.feature.melspectrogram(
        y=waveform,
        sr=16000,
        n_fft=1024,
        hop_length=160,
        win_length=400 if decar else 1024,
        pad_mode=pad_mode,
        power=1.0 if decar else 2.0,
        n_mels=64,
        fmin=60,
        fmax=7800,
        htk=decar,
        norm=None if decar else "slaney",
    )
    made: Array = np.log(np.clip(mel, 1e-5, 1e8) if decar else mel + np.finfo(np.float32).eps)
    return made


def padded(waveform: Array, config: Config) -> Array:
    return np.pad(waveform, (0, max(0, (config.crop_frames - 1) * 160 - len(waveform))))


def test_decar1_filters_are_librosas() -> None:
    expected = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=60, fmax=7800, htk=True, norm=None)
    np.testing.assert_allclose(mel_filters(FrontendConfig(kind="decar1")).numpy(), expected, atol=1e-6)


def test_the_first_frame_of_decar1_by_hand() -> None:
    """One windowed frame of 400 samples, a plain Fourier sum, triangles of height one, clip, log."""
    config, waveform = FrontendConfig(kind="decar1"), np.random.default_rng(0).standard_normal(1600) * 0.1
    frame = 5
    samples = waveform[frame * 160 - 200 : frame * 160 + 200] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
    times, bins = np.arange(400), np.arange(513)
    magnitude = np.abs(np.exp(-2j * np.pi * np.outer(bins, times) / 1024) @ samples)
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([60, 7800]) / 700)), 66) / 2595) - 1)
    mels = [
        sum(np.maximum(0, np.minimum((bins * 15.625 - a) / (b - a), (c - bins * 15.625) / (c - b))) * magnitude)
        for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    found = log_mel(torch.from_numpy(waveform).float(), config)[:, frame]
    np.testing.assert_allclose(found.numpy(), np.log(np.clip(mels, 1e-5, 1e8)), atol=1e-3)
    assert log_mel(torch.zeros(1600), config).unique().tolist() == pytest.approx([np.log(1e-5)])


@ENGINES
@pytest.mark.parametrize("values", [DECAR1, ZEROS, {**DECAR1, **ZEROS}])
def test_whole_clips_are_librosas_log_mel(noise: Noise, engine: Engine, values: dict[str, str]) -> None:
    shards, waveforms = noise
    config, seen = with_values(Config(), {"data.norm": "none", **values}), 0
    front = config.frontend
    for batch in Loader(shards, "train", config, device=CPU, batch_size=8, log_mel=engine).whole_clips():
        assert batch.frame_counts is not None
        ids, counts = batch.clip_ids.tolist(), batch.frame_counts.tolist()
        for clip, found, frames in zip(ids, batch.views[0][:, 0], counts, strict=True):
            expected = librosas(padded(waveforms[clip], config), front.kind, front.pad_mode)
            assert frames == expected.shape[1]
            np.testing.assert_allclose(found[:, :frames].numpy(), expected, atol=2e-4)
            seen += 1
    assert seen == CLIPS


@ENGINES
@pytest.mark.parametrize("values", [DECAR1, {**DECAR1, **ZEROS}, ZEROS, {"data.norm": "wave_l2"}])
def test_crops_are_frames_of_the_whole_clips_log_mel_in_stream_and_store(
    noise: Noise, engine: Engine, values: dict[str, str]
) -> None:
    shards, waveforms = noise
    config = with_values(Config(), {"data.norm": "none", **NO_MASKS, **values})
    stream = Loader(shards, "train", config, device=CPU, batch_size=7, log_mel=engine)
    held = placed(stream, "resident")
    assert isinstance(held, ResidentLoader)
    front, found = config.frontend, 0
    for batch, other in zip(stream.epoch(3), held.epoch(3), strict=True):
        assert torch.equal(batch.clip_ids, other.clip_ids)
        # float16 of what the cache holds: normalised by the set's statistics, or as it is
        reach = (batch.views[0] - held.held.mean).abs()
        assert bool(((batch.views[0] - other.views[0]).abs() <= 2**-11 * reach + 3e-4).all())
        for clip, crop in zip(batch.clip_ids.tolist(), batch.views[0][:, 0], strict=True):
            wave = waveforms[clip]
            if config.data.norm == "wave_l2":
                wave = wave / max(float(np.linalg.norm(wave.astype(np.float64))), 1 / 32768)
            whole = torch.from_numpy(librosas(padded(wave, config), front.kind, front.pad_mode))
            distances = (whole.unfold(1, 96, 1).permute(1, 0, 2) - crop).abs().amax(dim=(1, 2))
            assert distances.min() < 3e-4
            found += 1
    assert found == CLIPS


def test_silence_stays_silence() -> None:
    assert not unit_norm(torch.zeros(2, 9)).any()
    found = unit_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


def test_decar1_is_normalised_by_its_own_statistics(noise: Noise) -> None:
    shards, waveforms = noise
    frontend = FrontendConfig(kind="decar1")
    measured = set_statistics(shards, frontend)
    middles = [wave[max(0, (len(wave) - 16000) // 2) :][:16000] for wave in waveforms]
    values = np.concatenate([librosas(wave, "decar1", "reflect").ravel() for wave in middles])
    assert measured is not None and measured["clips"] == CLIPS
    np.testing.assert_allclose([measured["mean"], measured["std"]], [values.mean(), values.std()], atol=1e-3)
    loader = Loader(shards, "train", with_values(Config(), DECAR1), device=CPU, batch_size=8)
    assert (loader.mean, loader.std) == (measured["mean"], measured["std"])
    assert set_statistics(shards, FrontendConfig()) == shards.manifest.log_mel


@pytest.mark.parametrize("values", [DECAR1, ZEROS, {**DECAR1, **ZEROS}, {"data.norm": "wave_l2"}])
def test_embeddings_of_waveforms_are_those_of_the_shards(noise: Noise, values: dict[str, str]) -> None:
    """The embedder's own way from a waveform to a log-mel, against the loader's."""
    shards, waveforms = noise
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
    after = final_statistics({"mean": -4.0, "std": 2.0, "clips": 9}, norm.state())
    assert after == {"mean": pytest.approx(-4 + 2 * values.mean()), "std": pytest.approx(2 * values.std()), "clips": 9}
    assert final_statistics({"mean": 1.0, "std": 2.0}, {}) == {"mean": 1.0, "std": 2.0}
    assert final_statistics(None, {}) is None


def test_nothing_seen_leaves_crops_and_state_goes_on() -> None:
    crops = (torch.randn(3, 1, 64, 96),)
    config = with_values(Config(), {"data.norm": "running", "aug.mixup.ratio": 0, "aug.rrc.enabled": "false"})
    one, two = (Augmenter(config, 9, CPU) for _ in range(2))
    assert torch.equal(one.plain(crops)[0], crops[0])
    one(torch.arange(3), crops, 1)
    two.load_state(one.state())
    later = (torch.randn(3, 1, 64, 96) * 2,)
    assert torch.equal(one(torch.arange(3), later, 2)[0], two(torch.arange(3), later, 2)[0])
    assert not torch.allclose(one.plain(crops)[0], crops[0])


def test_a_running_norm_does_not_depend_on_the_statistics_before_it(noise: Noise) -> None:
    config = with_values(
        Config(), {"data.norm": "running", "aug.mixup.ratio": 0, "aug.rrc.enabled": "false", **NO_MASKS}
    )
    made = []
    for statistics in ({"mean": 0.0, "std": 1.0}, {"mean": -7.0, "std": 3.0}):
        loader = Loader(noise[0], "train", config, device=CPU, batch_size=8, statistics=statistics)
        augment = Augmenter(config, CLIPS, CPU)
        made.append([augment(batch.clip_ids, batch.views, 1, batch.counters)[0] for batch in loader.epoch(1)])
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
