"""Log-mel in plain torch: the reference that the DALI graph is tested against, and the packer's statistics.

L samples, F mel bins, T frames. Same definition as librosa (Slaney mel scale, area norm, reflected edges, power, log).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config_audio import FrontendConfig


def hz_to_slaney_mel(hz: Tensor) -> Tensor:
    """Slaney's scale: linear below 1000 Hz, logarithmic above. Source: Auditory Toolbox; librosa's default."""
    linear = hz * 3.0 / 200.0
    return torch.where(hz < 1000.0, linear, 15.0 + torch.log(hz.clamp(min=1000.0) / 1000.0) * (27.0 / math.log(6.4)))


def slaney_mel_to_hz(mel: Tensor) -> Tensor:
    """Inverse of hz_to_slaney_mel."""
    return torch.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * torch.exp((mel - 15.0) * (math.log(6.4) / 27.0)))


@cache
def mel_filters(config: FrontendConfig) -> Tensor:
    """(F, 1 + n_fft // 2) triangles on the Slaney scale, each of area one (in 2 / Hz). Source: librosa.filters.mel."""
    bins = torch.linspace(0, config.sample_rate_hz / 2, 1 + config.n_fft // 2, dtype=torch.float64)
    low, high = hz_to_slaney_mel(torch.tensor([config.fmin_hz, config.fmax_hz], dtype=torch.float64))
    edges = slaney_mel_to_hz(torch.linspace(float(low), float(high), config.n_mels + 2, dtype=torch.float64))
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


def log_mel(waveform: Tensor, config: FrontendConfig | None = None) -> Tensor:
    """(..., L) float32 in [-1, 1] -> (..., F, T) natural logarithm of mel power, T = 1 + L // hop.

    L must exceed n_fft // 2 samples, which the reflected edges need. Source: DECAR section 5; authors (window of
    n_fft).
    """
    config = config or FrontendConfig()
    spectrum = torch.stft(
        waveform,
        config.n_fft,
        config.hop_samples,
        window=torch.hann_window(config.n_fft, periodic=True, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.log(mel_filters(config).to(waveform.device) @ power + config.log_floor)


def log_mel_statistics(
    clips: Iterable[NDArray[np.int16]], config: FrontendConfig | None = None
) -> dict[str, float | int]:
    """Mean and standard deviation over all bins and frames of the clips, and how many clips were measured.

    Ours: two scalars, from the first clips of the shuffled train split (a random sample), in float64 sums; a running
    norm
    as the authors' depends on worker and order.
    """
    count, total, squares, measured = 0, 0.0, 0.0, 0
    for pcm in clips:
        values = log_mel(torch.from_numpy(pcm.astype(np.float32) / 32768.0), config).double()
        count += values.numel()
        total += float(values.sum())
        squares += float(values.square().sum())
        measured += 1
    if not count:
        return {"mean": 0.0, "std": 1.0, "clips": 0}
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    return {"mean": round(mean, 6), "std": round(max(std, 1e-6), 6), "clips": measured}
