"""Faults of a recording: clipping, silence, DC offset, a narrow band.

Clipping is measured at the file's own rate while it is packed, because resampling hides it; the others on PCM16 at
16 kHz.

Ours, all thresholds: chosen so that each fault is found where it is audible, and clean speech, music and noise pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ

Pcm = NDArray[np.int16]

FULL_SCALE = 32767
FULL_SCALES = {"PCM_S8": 127 / 128, "PCM_U8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}
"""Largest sample of a format, by libsndfile's name, where it is less than that of 16 bit; 1 is full scale. Of more bits
16 count, because recordings of 16 bit are kept in 24 and 32. Source of the laws' largest values: ITU-T G.711."""
CLIPPED_RUN_SAMPLES = 3
"""Samples in a row at full scale that count as clipped: one or two are the peak of a loud, clean signal."""
CLIPPED_SHARE = 1e-3
"""Of a clip's samples at its own rate: where hard clipping becomes audible."""
QUIET_PEAK = 32
"""Of 32768, -60 dB: below it 16 bit leave six bits or fewer of signal."""
DC_SHARE = 0.01
"""Mean, of full scale; sound cards of the poorer kind reach some thousandths."""
DC_OF_RMS = 0.25
"""Mean, of the root mean square: short clips of loud low tones have a mean too, but it is small for their level."""
NARROW_RATES_HZ = (8000, 11025)
"""Rates below 16 kHz at which speech and sounds are recorded; 12 kHz counts as the second."""
NARROW_DROP_DB = 30.0
"""How far the spectrum falls across half of such a rate, and stays. Resamplers fall by 90 dB and more, down to the
rounding of 16 bit; natural sounds and microphones by less than 20 within so few hertz."""

_FFT_SAMPLES, _FFT_FRAMES = 1024, 16
_WINDOW = np.hanning(_FFT_SAMPLES).astype(np.float32)
_HERTZ_PER_BIN = SAMPLE_RATE_HZ / _FFT_SAMPLES
_ROUNDING_POWER = 1 / 12
"""Power of rounding to whole numbers, which is white."""


class Clipping:
    """Counts the clipped samples of a recording, in runs at full scale, channel by channel.   C channels."""

    def __init__(self, subtype: str, channels: int) -> None:
        """Args: subtype: libsndfile's name of the sample format."""
        self._level = np.float32(FULL_SCALES.get(subtype, FULL_SCALE / (FULL_SCALE + 1)))
        self._clipped, self._frames = np.zeros(channels, np.int64), 0

    def count(self, block: NDArray[np.float32] | Pcm) -> None:
        """(frames, C): the next samples, in [-1, 1] or of 16 bit. A run that crosses two blocks counts as two."""
        self._frames += len(block)
        level = FULL_SCALE if block.dtype == np.int16 else self._level
        if not block.size or (block.max() < level and block.min() > -level):
            return
        for channel, signal in enumerate(block.T):
            full = (signal >= level) | (signal <= -level)
            edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
            lengths = edges[1::2] - edges[::2]
            self._clipped[channel] += lengths[lengths >= CLIPPED_RUN_SAMPLES].sum()

    @property
    def share(self) -> float:
        """Of the samples of the channel that has most clipped ones; 0 where nothing was counted."""
        return float(self._clipped.max() / self._frames) if self._frames else 0.0


def is_quiet(lowest: int, highest: int) -> bool:
    """Whether no sample is further than `QUIET_PEAK` from zero, but not all are equal: the clips table marks those."""
    return max(highest, -lowest) <= QUIET_PEAK and highest != lowest


def dc_offset(pcm: Pcm) -> float | None:
    """Mean as a share of full scale, where it is large enough to report."""
    mean = float(pcm.mean()) / (FULL_SCALE + 1)
    if abs(mean) < DC_SHARE:
        return None
    signal = pcm.astype(np.float32) / np.float32(FULL_SCALE + 1)
    return mean if abs(mean) >= DC_OF_RMS * float(np.sqrt(np.mean(signal * signal))) else None


def narrow_band_hz(pcm: Pcm) -> int | None:
    """The rate below 16 kHz at which the clip was recorded, where its spectrum shows one."""
    power = mean_power(pcm)
    if power is None:
        return None
    decibels = 10 * np.log10(power)
    for rate_hz in NARROW_RATES_HZ:
        edge = rate_hz / 2 / _HERTZ_PER_BIN
        below = np.sort(decibels[round(0.7 * edge) : round(0.9 * edge)])
        above = np.sort(decibels[round(1.06 * edge) :])
        if below[len(below) // 2] - above[9 * len(above) // 10] >= NARROW_DROP_DB:
            return rate_hz
    return None


def mean_power(pcm: Pcm) -> NDArray[Any] | None:
    """(513,) power spectrum in units of rounding noise, over frames spread evenly; None for a clip too short."""
    if len(pcm) < _FFT_SAMPLES:
        return None
    starts = np.linspace(0, len(pcm) - _FFT_SAMPLES, min(_FFT_FRAMES, len(pcm) // _FFT_SAMPLES)).astype(np.int64)
    spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(pcm, _FFT_SAMPLES)[starts] * _WINDOW)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=0) / float((_WINDOW**2).sum())
    return np.asarray(np.maximum(power, 1e-3 * _ROUNDING_POWER) / _ROUNDING_POWER)
