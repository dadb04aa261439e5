"""What the DALI graph of pipeline.py is made of: crops of waveforms, log-mels, clip ids.   F mel bins, T frames.

DALI itself is handed in, as pipeline.import_dali gives it, so that one file imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unfused_fast.audio import analysis_window
from unfused_fast.config_audio import FrontendConfig
from unfused_fast.mel import DECAR_RANGE

Dali = tuple[Any, Any, Any, Any]
"""fn, math, types, Pipeline."""


def log_mel(dali: Dali, waveform: Any, config: FrontendConfig, mean: float, std: float) -> Any:
    """Samples with their context -> (F, T) (log-mel - mean) / std, where the waveform is."""
    fn, math, *_ = dali
    decar = config.kind == "decar1"
    spectrum = fn.spectrogram(
        waveform,
        nfft=config.n_fft,
        window_length=config.n_fft,
        window_step=config.hop_samples,
        power=1 if decar else 2,
        center_windows=False,
        window_fn=analysis_window(config).tolist(),  # DALI's own Hann window is symmetric
    )
    mel = fn.mel_filter_bank(
        spectrum,
        nfilter=config.n_mels,
        sample_rate=float(config.sample_rate_hz),
        freq_low=config.fmin_hz,
        freq_high=config.fmax_hz,
        mel_formula="htk" if decar else "slaney",
        normalize=not decar,
    )
    log = math.log(math.clamp(mel, *DECAR_RANGE) if decar else mel + config.log_floor)
    return (log - mean) * (1.0 / std)


def cut(dali: Dali, pcm: Any, crop: list[Any], unit_norm: bool) -> Any:
    """(1, L, 1) PCM16 -> float32 samples of the crop with the edges of a centred STFT, as order.Crop says; beyond the
    clip's end lie zeros.

    Args:
        unit_norm: divide by the L2 norm of all of `pcm`, and not by 32768.
    """
    fn, math, types, _ = dali
    head_start, head, body_start, body, tail_start, tail = crop

    def part(start: Any, length: Any) -> Any:
        return fn.slice(pcm, start=start, shape=length, axes=(1,), out_of_bounds_policy="pad")

    pieces = fn.flip(part(head_start, head)), part(body_start, body), fn.flip(part(tail_start, tail))
    joined = fn.reshape(fn.cat(*pieces, axis=1), shape=[-1], layout="")
    if not unit_norm:
        return fn.cast(joined, dtype=types.FLOAT) * (1.0 / 32768)
    samples = fn.reshape(fn.cast(pcm, dtype=types.FLOAT), shape=[-1], layout="")
    norm = math.sqrt(fn.reductions.sum(samples * samples))
    return fn.cast(joined, dtype=types.FLOAT) / math.max(norm, 1.0)


def clip_id(dali: Dali, digits: Any, width: int) -> Any:
    """The ASCII digits of an `.index` member -> the clip id, int64."""
    fn, _, types, _ = dali
    powers = types.Constant(np.array([10**place for place in range(width - 1, -1, -1)], dtype=np.int64))
    return fn.reductions.sum((fn.cast(digits, dtype=types.INT64) - 48) * powers, axes=(0,), keep_dims=True)
