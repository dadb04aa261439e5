"""Log-mel in torch: the reference that the DALI graph is tested against, and the front end for streaming on a CPU;
statistics.

B clips, L samples, F mel bins, T frames. Same definition as librosa (byola: Slaney mel scale, area norm,
power, log(x + eps); decar1: HTK scale, no area norm, magnitude, window of 400 samples, clipped, log).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from unfused_fast import mel
from unfused_fast.config import Config, FrontendConfig
from unfused_fast.errors import UserError
from unfused_fast.shards.packing.finish import STATISTICS_CLIPS, STATISTICS_SPLIT, stored_clips
from unfused_fast.shards.sets.table import ShardSet

FRAMES_AT_ONCE = 384
"""Frames whose spectra are computed together on a CPU. Ours: the spectra then stay in its cache."""


def mel_filters(config: FrontendConfig) -> Tensor:
    """(F, 1 + n_fft // 2), as mel.mel_filters."""
    return torch.from_numpy(mel.mel_filters(config))


def analysis_window(config: FrontendConfig, device: torch.device | None = None) -> Tensor:
    """(n_fft,) as mel.analysis_window; torch's own Hann window, which may differ in the last bit."""
    length = config.window_samples
    window, before = torch.hann_window(length, periodic=True, device=device), (config.n_fft - length) // 2
    edges = before, config.n_fft - length - before
    return torch.nn.functional.pad(window, edges) if any(edges) else window


def unit_norm(waveform: Tensor) -> Tensor:
    """(..., L) float in [-1, 1] -> divided by its L2 norm, or by one step of PCM16 where that is larger, so that
    silence stays silence. Source: authors (`l2`). Ours: the norm of the whole clip, so that crops do not depend on how
    log-mels are stored.
    """
    norm: Tensor = torch.linalg.vector_norm(waveform, dim=-1, keepdim=True)
    return waveform / norm.clamp(min=1 / 32768)


def log_mel(waveform: Tensor, config: FrontendConfig | None = None, edges: bool = True) -> Tensor:
    """(..., L) float32 in [-1, 1] -> (..., F, T) natural logarithm of mel power, or by `kind` magnitude; T is 1 + L
    // hop.

    L must exceed n_fft // 2 samples, which the reflected edges need. Source: DECAR section 5; authors (window of
    n_fft).

    Args:
        edges: add both edges, by `pad_mode`; False: L has the n_fft // 2 samples of each edge already.
    """
    config = config or FrontendConfig()
    spectrum = torch.stft(
        waveform,
        config.n_fft,
        config.hop_samples,
        window=analysis_window(config, waveform.device),
        center=edges,
        pad_mode=config.pad_mode,
        return_complex=True,
    )
    power, filters = spectrum.real.square() + spectrum.imag.square(), mel_filters(config).to(waveform.device)
    if config.kind == "decar1":
        return torch.log((filters @ power.sqrt()).clamp(*mel.DECAR_RANGE))
    return torch.log(filters @ power + config.log_floor)


def framed_log_mel(waveform: Tensor, config: FrontendConfig, mean: float, std: float) -> Tensor:
    """(B, L) float32 with its context -> (B, F, T) (log_mel - mean) / std, T = 1 + (L - n_fft) // hop; for a CPU.

    The frames of log_mel of a waveform to which n_fft // 2 samples were added at both ends. Ours: one pass over memory,
    which takes half the time of DALI's operators on a CPU.
    """
    frames = waveform.unfold(1, config.n_fft, config.hop_samples)
    clips, count, length = frames.shape
    decar, window, filters = config.kind == "decar1", analysis_window(config), mel_filters(config).T.contiguous()
    made = torch.empty(clips, config.n_mels, count)
    together = max(1, FRAMES_AT_ONCE // count)
    windowed = torch.empty(0)
    spectrum, power = torch.empty(0, dtype=torch.complex64), torch.empty(0)
    for clip in range(0, clips, together):
        for frame in range(0, count, FRAMES_AT_ONCE):
            part = frames[clip : clip + together, frame : frame + FRAMES_AT_ONCE]
            windowed = torch.mul(part, window, out=windowed.resize_(part.shape))
            bins = (*part.shape[:2], length // 2 + 1)
            spectrum = torch.fft.rfft(windowed, out=spectrum.resize_(bins))
            parts = torch.view_as_real(spectrum)
            power = torch.mul(parts[..., 0], parts[..., 0], out=power.resize_(bins))
            power.addcmul_(parts[..., 1], parts[..., 1])
            mels = (power.sqrt_() if decar else power) @ filters
            log_mel = (mels.clamp_(*mel.DECAR_RANGE) if decar else mels.add_(config.log_floor)).log_()
            made[clip : clip + together, :, frame : frame + FRAMES_AT_ONCE] = log_mel.transpose(1, 2)
    return made if (mean, std) == (0.0, 1.0) else made.sub_(mean).mul_(1.0 / std)


def set_statistics(shards: ShardSet, frontend: FrontendConfig) -> Mapping[str, float] | None:
    """`mean`, `std` and `clips` by which log-mels of the set are normalised; None for a set packed without them.

    Those of the manifest for `byola`, for which the packer measured them; for another front end they are measured on
    the same clips, the first of the train split. Raises UserError for shards that cannot be read.
    """
    manifest = shards.manifest
    if frontend.kind == "byola" or STATISTICS_SPLIT not in manifest.splits:
        return manifest.log_mel
    tars = manifest.splits[STATISTICS_SPLIT].shards
    return _measured(shards.directory, tars, manifest.codec, manifest.digest, frontend)


def scale(config: Config, known: Mapping[str, float] | None) -> tuple[float, float]:
    """Mean and standard deviation by which log-mels are normalised, of those known; 0 and 1 leave them as they are."""
    scaled = known is not None and config.data.norm in ("dataset", "running")
    return (known["mean"], known["std"]) if known is not None and scaled else (0.0, 1.0)


@lru_cache(maxsize=16)
def _measured(
    folder: Path, tars: tuple[str, ...], codec: str, digest: str, frontend: FrontendConfig
) -> dict[str, float | int]:
    try:
        return mel.log_mel_statistics(islice(stored_clips(folder, tars, codec), STATISTICS_CLIPS), frontend)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder}: a clip of split train cannot be read ({error}); see: unfused-fast check") from error
