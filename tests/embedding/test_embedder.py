"""unfused_fast.load: waveforms to embeddings, beside features.extract and the encoder by itself."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from host_waits import Recorded

import unfused_fast
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data.front_end import log_mel
from unfused_fast.embedding import pieces as clip_pieces
from unfused_fast.embedding.embedder import Embedder
from unfused_fast.errors import UserError
from unfused_fast.models.audiontt import build_encoder
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import FrozenEncoder, extract, load_encoder

CPU = torch.device("cpu")


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(16000 * seconds), generator=generator)


def random_embedder(**values: object) -> Embedder:
    """A tiny encoder with random weights and running statistics that are not those of the start."""
    config = with_values(Config(), {name.replace("__", "."): value for name, value in values.items()})
    torch.manual_seed(0)
    network = build_encoder(config)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 1, 64, 96))
    return Embedder(FrozenEncoder("random", config, {"mean": -3.0, "std": 2.0}, network.eval(), None))


def test_short_clips_equal_the_training_pipeline(
    pretrained: Path, embedder: Embedder, pack_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Clips shorter than a training crop, which are followed by silence."""
    clips = [noise(seconds, number).numpy() for number, seconds in enumerate((0.11, 0.3, 0.949))]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip, 16000, subtype="PCM_16")
    shards = open_shards(pack_rows([SourceRow(tmp_path / f"{n}.wav", f"{n}.wav") for n in range(3)], tmp_path / "set"))
    expected = extract(load_encoder(pretrained, CPU), shards, "train", "encoder", "maxmean", CPU)
    stored = [soundfile.read(tmp_path / name, dtype="float32")[0] for name in shards.clips["source"].to_pylist()]
    torch.testing.assert_close(embedder.embed(stored, 16000), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["audiontt", "efficientnet_b0"])
def test_a_clip_does_not_depend_on_the_others(encoder: str) -> None:
    embedder = random_embedder(model__encoder=encoder, model__channels=4, model__dim=32)
    clips = [noise(seconds, number) for number, seconds in enumerate((0.5, 3.3, 1.0, 7.01))]
    together = embedder.embed(clips, 16000)
    for clip, row in zip(clips, together, strict=True):
        torch.testing.assert_close(embedder.embed(clip, 16000)[0], row, rtol=1e-4, atol=1e-5)
    padded = torch.full((4, 200000), torch.nan)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    by_length = embedder.embed(padded, 16000, lengths=[len(clip) for clip in clips])
    torch.testing.assert_close(by_length, together, rtol=0, atol=0)


@pytest.mark.parametrize("seconds", [10.0, 10.079, 12.34])
def test_pieces_give_what_the_whole_clip_gives(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, clip = random_embedder(model__channels=4, model__dim=32), noise(seconds)
    whole, (steps, times) = embedder.embed(clip, 16000), embedder.embed_frames(clip, 16000)
    monkeypatch.setattr(clip_pieces, "PIECE_FRAMES", 128)
    assert len(embedder.cutting.pieces(len(clip))) >= 8
    torch.testing.assert_close(embedder.embed(clip, 16000), whole, rtol=1e-5, atol=1e-5)
    cut_steps, cut_times = embedder.embed_frames(clip, 16000)
    torch.testing.assert_close(cut_steps, steps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut_times, times, rtol=0, atol=0)


def _keep(maps: list[Any], module: torch.nn.Module, given: Any, made: Any) -> None:
    maps.append(made)


@pytest.mark.parametrize("encoder", ["audiontt", "efficientnet_b0"])
def test_layers_stand_side_by_side_however_a_clip_is_cut(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the maps that hooks see when the network reads the whole clip. EfficientNet's pieces are other inputs."""
    values = {"model__encoder": encoder, "model__channels": 4, "model__dim": 32}
    clips, embedder = [noise(2.13), noise(5.0, 1), noise(12.345, 2)], random_embedder(**values)
    embedder = Embedder(
        FrozenEncoder("", embedder.config, {"mean": -3.0, "std": 2.0}, embedder.encoder, None), None, "all"
    )
    parts = embedder.encoder.convolutions if encoder == "audiontt" else [embedder.encoder.stages[n] for n in (1, 2, 4)]
    for row, clip in zip(embedder.embed(clips, 16000), clips, strict=True):
        maps: list[Any] = []
        with ExitStack() as stack:
            for part in parts:
                last = part if encoder == "audiontt" else part[-1]
                hook = last.register_forward_hook(partial(_keep, maps))
                stack.callback(hook.remove)
            log_mels = (log_mel(clip[None], embedder.config.frontend) + 3.0) / 2.0
            frames = embedder.encoder(log_mels[:, None]).frames[0]
        found = [one if isinstance(one, torch.Tensor) else one[0] for one in maps]
        steps = [*(one[0].permute(2, 0, 1).flatten(1) for one in found), frames]
        wanted = torch.cat([one.amax(dim=0) + one.mean(dim=0) for one in steps])
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-4)
    whole = embedder.embed(clips, 16000)
    assert embedder.scene_embedding_size == whole.shape[1] == len(wanted)
    with pytest.raises(UserError, match="features = all: steps are of the encoder's end"):
        embedder.embed_frames(clips, 16000)
    if encoder == "audiontt":
        monkeypatch.setattr(clip_pieces, "PIECE_FRAMES", 128)
        assert len(embedder.cutting.pieces(len(clips[2]))) >= 8
        torch.testing.assert_close(embedder.embed(clips, 16000), whole, rtol=1e-5, atol=1e-5)


def test_batches_are_bounded_the_longest_first() -> None:
    """A longer piece is alone; shorter ones are padded to the first of their batch, which counts."""
    frames = [100, 700, 2000, 90, 95, 1536, 800, 768]
    pieces = [clip_pieces.ClipPiece(0, 1, 0, count, 0, 1, 1) for count in frames]
    batches = [[frames[number] for number in batch] for batch in clip_pieces.in_batches(pieces, 1536)]
    assert batches == [[2000], [1536], [800], [768, 700], [100, 95, 90]]


def test_steps_and_their_times(embedder: Embedder) -> None:
    embedder.train()
    assert not any(module.training for module in embedder.modules()), "it stays in eval mode"
    steps, times = embedder.embed_frames(torch.stack([noise(2.0), noise(2.0, 1)]), 16000)
    assert steps.shape == (2, 25, 32) and times.shape == (2, 25)  # 201 frames, 8 a step
    assert times[0, 0] == 35.0 and torch.equal(times.diff(), torch.full((2, 24), 80.0))
    pooled = steps.amax(dim=1) + steps.mean(dim=1)
    torch.testing.assert_close(embedder.embed(torch.stack([noise(2.0), noise(2.0, 1)]), 16000), pooled)


def test_a_click_moves_the_steps_around_it(embedder: Embedder) -> None:
    """The time of a step is where it listens: silence with a click differs from silence around the click only."""
    silence, click = torch.zeros(32000), torch.zeros(32000)
    click[16000] = 0.9
    (quiet, times), (loud, _) = embedder.embed_frames(silence, 16000), embedder.embed_frames(click, 16000)
    moved = times[0][(quiet - loud).abs().amax(dim=-1)[0] > 1e-6]
    # half a step, half a window and the 7 frames of context
    assert len(moved) and (moved - 1000).abs().max() <= 40 + 32 + 80
    assert (moved - 1000).abs().min() <= 40


def test_the_host_waits_no_oftener_for_more_clips(embedder: Embedder) -> None:
    counts = []
    for clips in (2, 12):
        waves = [noise(1.0 + 0.1 * number, number) for number in range(clips)]
        with Recorded() as seen:
            embedder.embed(waves, 16000)
            embedder.embed_frames(waves, 16000)
        counts.append(seen.waits)
    assert counts[0] == counts[1]


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_by_each_clip(pretrained: Path) -> None:
    """As above, by PyTorch's own warnings; and the embeddings are those of the CPU."""
    on_gpu, counts = unfused_fast.load(pretrained, device="cuda"), []
    for clips in (2, 12):
        waves = [noise(1.0 + 0.1 * number, number) for number in range(clips)]
        on_gpu.embed(waves, 16000)  # warm
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = on_gpu.embed(waves, 16000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(len([warning for warning in caught if "synchroniz" in str(warning.message)]))
        expected = unfused_fast.load(pretrained, device="cpu").embed(waves, 16000)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-2)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("waveform", "rate", "said"),
    [
        (torch.zeros(2, 1, 16000), 16000, r"\(2, 1, 16000\)"),
        ([noise(1), noise(2) / 0, noise(1) / 0], 16000, "clip 1: it holds NaN or infinity"),
        ([], 16000, "no clips"),
        (np.zeros((132300, 2)), 44100, r"\(132300, 2\), which looks like \(samples, channels\).*mean\(axis=1\)"),
        ([np.zeros((132300, 2))], 44100, r"clip 0 is \(132300, 2\).*mean\(axis=1\)"),
        ((np.zeros((132300, 2)), 44100), 44100, "a pair of samples and sample rate"),
        ([0.0, 0.1, 0.2], 16000, "a list of numbers"),
        ([[[0.0, 0.1], [0.2]]], 16000, "lists of different lengths"),
        ("speech.wav", 16000, "soundfile.read"),
        (np.zeros(16000, np.int16), 16000, "int16: .* 32768"),
        (np.zeros(16000, np.uint8), 16000, "uint8: .* subtract 128"),
        (np.array([noise(1), noise(2)], object), 16000, r"object: .* make a list, with .tolist\(\)$"),
        (np.array([0, 12000.0, -3]), 16000, "samples up to 12000: .* 32768"),
        (np.zeros((2, 0)), 16000, "1 sample or more"),
        (np.float32(0.5), 16000, r"\(\)"),
        (np.zeros(16000, np.float32), 0, "sample_rate = 0"),
        (np.zeros(16000, np.float32), "16000", "sample_rate = a str"),
    ],
)
def test_bad_input_is_refused_in_words(embedder: Embedder, waveform: Any, rate: int, said: str) -> None:
    for embed in (embedder.embed, embedder.embed_frames):
        with pytest.raises(UserError, match=said):
            embed(waveform, rate)


@pytest.mark.parametrize("lengths", [5, [5, 5], [0], [16001], [[5]], "a", [1.5], [1j], object()])
def test_lengths_are_one_for_each_clip(embedder: Embedder, lengths: Any) -> None:
    with pytest.raises(UserError, match=r"lengths .*: want one whole number for each clip, from 1 to"):
        embedder.embed(torch.zeros(1, 16000), 16000, lengths=lengths)


def test_any_float_in_any_layout_is_the_same_clip(embedder: Embedder) -> None:
    clip = noise(1.1).numpy()
    expected, at_48k = embedder.embed(clip, 16000), soxr.resample(clip, 16000, 48000, "HQ")
    read_only = clip.copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (
            clip.astype(np.float64),
            clip.astype(">f4"),
            clip[::-1].copy()[::-1],
            read_only,
            [clip.tolist()],
            torch.from_numpy(clip).requires_grad_(),
        ):
            torch.testing.assert_close(embedder.embed(same, 16000), expected, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
        torch.testing.assert_close(embedder.embed(clip.astype(np.float16), 16000), expected, rtol=1e-2, atol=1e-2)
        strided = np.stack([at_48k, at_48k], axis=1)[:, 0]
        torch.testing.assert_close(embedder.embed(strided, 48000), embedder.embed(at_48k, np.float64(48000)))  # type: ignore[arg-type]


def test_load_names_what_is_not_there(tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"pool = 'avg': want one of maxmean, mean, max"):
        unfused_fast.load(pretrained, pool="avg")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not a run"):
        unfused_fast.load(tmp_path)
    with pytest.raises(AttributeError, match="no_such"):
        unfused_fast.no_such  # noqa: B018
