"""The plain torch log-mel against librosa."""

import librosa
import numpy as np
import torch

from unfused_fast.config.audio import FrontendConfig
from unfused_fast.data.front_end import log_mel, mel_filters
from unfused_fast.mel import log_mel_statistics


def librosa_log_mel(waveform: np.ndarray) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=16000,
        n_fft=1024,
        hop_length=160,
        n_mels=64,
        fmin=60,
        fmax=7800,
        power=2.0,
        pad_mode="reflect",
        htk=False,
        norm="slaney",
    )
    return np.log(power + np.finfo(np.float32).eps)


def test_filters_are_librosas() -> None:
    expected = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=60, fmax=7800, htk=False, norm="slaney")
    np.testing.assert_allclose(mel_filters(FrontendConfig()).numpy(), expected, atol=1e-7)


def test_log_mel_is_librosas() -> None:
    generator = np.random.default_rng(0)
    for samples in (700, 15200, 16000, 25601):
        waveform = (generator.standard_normal(samples) * 0.1).astype(np.float32)
        found = log_mel(torch.from_numpy(waveform)).numpy()
        assert found.shape == (64, 1 + samples // 160)
        np.testing.assert_allclose(found, librosa_log_mel(waveform), atol=1e-4)


def test_statistics_are_those_of_all_bins_and_frames_of_the_middle() -> None:
    generator = np.random.default_rng(1)
    clips = [(generator.standard_normal(samples) * 3000).astype(np.int16) for samples in (4000, 16000, 9000, 50001)]
    middles = [*clips[:3], clips[3][17000:33000]]
    values = np.concatenate([librosa_log_mel(clip.astype(np.float32) / 32768).ravel() for clip in middles])
    found = log_mel_statistics(iter(clips))
    assert found["clips"] == 4
    np.testing.assert_allclose([found["mean"], found["std"]], [values.mean(), values.std()], atol=1e-4)
