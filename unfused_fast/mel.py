"""Mel filters, and the statistics of log-mels that the packer writes: numpy, so that packing does not wait for torch.

F mel bins, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from unfused_fast.config import FrontendConfig
from unfused_fast.shards.packing.workers import available_cores

STATISTICS_SECONDS = 1.0
"""Middle part of a clip that is measured. Ours: clips differ more than the parts of one do, so that many clips say more
than long ones."""

DECAR_RANGE = 1e-5, 1e8
"""To which `decar1` clips mel magnitudes before the logarithm. Source: authors of DECAR."""

BATCH = 128
"""Clips in one product with the filters."""


def mel_edges(config: FrontendConfig) -> NDArray[np.float64]:
    """(F + 2,) hertz, evenly spaced in mel from fmin to fmax: on Slaney's scale, linear below 1000 Hz and logarithmic
    above, or for `decar1` on HTK's, logarithmic throughout. Source: Auditory Toolbox; HTK; librosa.mel_frequencies.
    """
    hz = np.array([config.fmin_hz, config.fmax_hz])
    if config.kind == "decar1":
        low, high = 2595.0 * np.log10(1.0 + hz / 700.0)
        return 700.0 * (10.0 ** (np.linspace(low, high, config.n_mels + 2) / 2595.0) - 1.0)
    above = 15.0 + np.log(np.maximum(hz, 1000.0) / 1000.0) * (27.0 / math.log(6.4))
    low, high = np.where(hz < 1000.0, hz * 3.0 / 200.0, above)
    mel = np.linspace(low, high, config.n_mels + 2)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * (math.log(6.4) / 27.0)))


@cache
def mel_filters(config: FrontendConfig) -> NDArray[np.float32]:
    """(F, 1 + n_fft // 2) triangles over hertz: on the Slaney scale, each of area one (in 2 / Hz), or for `decar1` on
    HTK's, each of height one. Source: librosa.filters.mel.
    """
    edges, bins = mel_edges(config), np.linspace(0, config.sample_rate_hz / 2, 1 + config.n_fft // 2)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(np.minimum(rising, falling), 0)
    areas = 1.0 if config.kind == "decar1" else (2.0 / (edges[2:] - edges[:-2]))[:, None]
    filters: NDArray[np.float32] = (triangles * areas).astype(np.float32)
    return filters


def analysis_window(config: FrontendConfig) -> NDArray[np.float32]:
    """(n_fft,) periodic Hann window of `window_samples`, in the middle of zeros. Source: librosa.stft (win_length)."""
    length = config.window_samples
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    before = (config.n_fft - length) // 2
    window: NDArray[np.float32] = np.pad(hann, (before, config.n_fft - length - before)).astype(np.float32)
    return window


def log_mel_statistics(
    clips: Iterable[NDArray[np.int16]], config: FrontendConfig | None = None
) -> dict[str, float | int]:
    """Mean and standard deviation of data.log_mel over all bins and frames of the clips, and how many were measured.

    Ours: two scalars, from the middle `STATISTICS_SECONDS` of the first clips of the shuffled train split (a random
    sample), in float64 sums; a running norm as the authors' depends on worker and order.
    """
    config = config or FrontendConfig()
    decar, window = config.kind == "decar1", analysis_window(config)
    filters, length = mel_filters(config).T, round(STATISTICS_SECONDS * config.sample_rate_hz)

    def power(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
        waveform = np.pad(pcm.astype(np.float32) / 32768.0, config.n_fft // 2, mode=config.pad_mode)
        spectrum = np.fft.rfft(sliding_window_view(waveform, config.n_fft)[:: config.hop_samples] * window)
        found: NDArray[np.float32] = np.square(spectrum.real) + np.square(spectrum.imag)
        return np.sqrt(found) if decar else found

    starts = ((pcm, max(0, (len(pcm) - length) // 2)) for pcm in clips)
    count, total, squares, measured = 0, 0.0, 0.0, 0
    with ThreadPoolExecutor(available_cores()) as pool:
        powers = pool.map(power, (pcm[start : start + length].copy() for pcm, start in starts))
        while some := list(islice(powers, BATCH)):  # products one by one would have BLAS's threads wait for each other
            mels = np.concatenate(some) @ filters
            floored = np.clip(mels, *DECAR_RANGE) if decar else mels + np.float32(config.log_floor)
            values = np.log(floored).astype(np.float64)
            count, measured = count + values.size, measured + len(some)
            total, squares = total + float(values.sum()), squares + float(np.square(values).sum())
    if not count:
        return {"mean": 0.0, "std": 1.0, "clips": 0}
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    return {"mean": round(mean, 6), "std": round(max(std, 1e-6), 6), "clips": measured}
