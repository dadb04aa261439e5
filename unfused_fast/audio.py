"""Log-mel in plain torch: the reference that the DALI graph is tested against.

L samples, F mel bins, T frames. Same definition as librosa (Slaney mel scale, area norm, reflected edges, power, log).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfused_fast import mel
from unfused_fast.config_audio import FrontendConfig


def mel_filters(config: FrontendConfig) -> Tensor:
    """(F, 1 + n_fft // 2), as mel.mel_filters."""
    return torch.from_numpy(mel.mel_filters(config))


def log_mel(waveform: Tensor, config: FrontendConfig | None = None, edges: bool = True) -> Tensor:
    """(..., L) float32 in [-1, 1] -> (..., F, T) natural logarithm of mel power, T = 1 + L // hop.

    L must exceed n_fft // 2 samples, which the reflected edges need. Source: DECAR section 5; authors (window of
    n_fft).

    Args:
        edges: reflect both edges; False: L has the n_fft // 2 samples of each edge already.
    """
    config = config or FrontendConfig()
    spectrum = torch.stft(
        waveform,
        config.n_fft,
        config.hop_samples,
        window=torch.hann_window(config.n_fft, periodic=True, device=waveform.device),
        center=edges,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.log(mel_filters(config).to(waveform.device) @ power + config.log_floor)
