"""Noise as a set and as waveforms, and its log-mels by librosa."""

from __future__ import annotations

from collections.abc import Callable

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from unfused_fast.config.fields import Config
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow

CLIPS = 53
Array = NDArray[np.float32]
Noise = tuple[ShardSet, list[Array]]


@pytest.fixture(scope="session")
def noises(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Noise]:
    """53 clips of 0.3 to 2 s, some shorter than a crop, in three shards; waveforms by clip id."""
    folder, generator, rows = tmp_path_factory.mktemp("noise"), np.random.default_rng(0), []
    for number in range(CLIPS):
        samples = 15360 if number == 0 else int(generator.integers(4800, 32000))
        pcm = (generator.standard_normal(samples) * generator.uniform(30, 3000)).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", pcm, 16000, subtype="PCM_16")
        rows.append(SourceRow(folder / f"{number}.wav", f"{number}.wav"))
    found = {}
    for codec in ("wav", "flac"):
        out, statistics = folder / codec, log_mel_statistics
        shards = pack(rows, out, codec=codec, workers=0, clips_per_shard=20, statistics=statistics).shard_set
        assert len(shards.shard_paths("train")) == 3
        sources = shards.clips.column("source").to_pylist()
        found[codec] = shards, [soundfile.read(folder / source, dtype="float32")[0] for source in sources]
    return found


@pytest.fixture(params=["wav", "flac"])
def noise(noises: dict[str, Noise], request: pytest.FixtureRequest) -> Noise:
    return noises[request.param]


@pytest.fixture
def wav_noise(noises: dict[str, Noise]) -> Noise:
    return noises["wav"]


@pytest.fixture(scope="session")
def librosas() -> Callable[..., Array]:
    """`librosas(waveform, kind, pad_mode)`: the log-mel by librosa's own functions."""

    def made(waveform: Array, kind: str = "byola", pad_mode: str = "reflect") -> Array:
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
        found: Array = np.log(np.clip(mel, 1e-5, 1e8) if decar else mel + np.finfo(np.float32).eps)
        return found

    return made


@pytest.fixture(scope="session")
def padded() -> Callable[[Array, Config], Array]:
    """`padded(waveform, config)`: followed by silence up to the length of a crop."""
    return lambda waveform, config: np.pad(waveform, (0, max(0, (config.crop_frames - 1) * 160 - len(waveform))))
