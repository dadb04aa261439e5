"""The usual loader of this field, written after its public description (BYOL-A section 3 and loaders that follow it).

torch DataLoader workers; for each clip soundfile, a random crop, librosa's log-mel, then twice log-mixup-exp with a
FIFO memory and a random resize crop by F.interpolate; default collate. The same numbers (config/fields.py) as ours.
"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from unfused_fast.config.fields import Config


class UsualMixup:
    """Log-mixup-exp of one log-mel with one of the last inputs; every worker has a memory of its own."""

    def __init__(self, ratio: float, memory: int) -> None:
        self.ratio, self.memory = ratio, deque[Tensor](maxlen=memory)

    def __call__(self, log_mel: Tensor) -> Tensor:
        mixed = log_mel
        if self.memory:
            share = self.ratio * random.random()
            other = self.memory[random.randrange(len(self.memory))]
            mixed = ((1.0 - share) * log_mel.exp() + share * other.exp() + torch.finfo(log_mel.dtype).eps).log()
        self.memory.append(log_mel)
        return mixed


class UsualResizeCrop:
    """A random crop of a zero canvas with the log-mel (1, F, T) in its middle, resized back to (1, F, T)."""

    def __init__(self, canvas_time: float, freq_scale: tuple[float, float], time_scale: tuple[float, float]) -> None:
        self.canvas_time, self.freq_scale, self.time_scale = canvas_time, freq_scale, time_scale

    def __call__(self, log_mel: Tensor) -> Tensor:
        bins, frames = log_mel.shape[1:]
        canvas = torch.zeros(1, bins, int(frames * self.canvas_time))
        left = (canvas.shape[2] - frames) // 2
        canvas[:, :, left : left + frames] = log_mel
        height = min(bins, int(bins * random.uniform(*self.freq_scale)))
        width = min(canvas.shape[2], int(frames * random.uniform(*self.time_scale)))
        top, start = random.randint(0, bins - height), random.randint(0, canvas.shape[2] - width)
        crop = canvas[None, :, top : top + height, start : start + width]
        return interpolate(crop, size=(bins, frames), mode="bicubic", align_corners=True)[0]


class UsualDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Two augmented views (1, F, T) of a clip and its number."""

    def __init__(self, paths: list[Path], config: Config, mean: float, std: float) -> None:
        self.paths, self.frontend, self.mean, self.std = paths, config.frontend, mean, std
        self.samples = round(config.data.crop_seconds * config.frontend.sample_rate_hz)
        self.mixup = UsualMixup(config.aug.mixup.ratio, config.aug.mixup.memory)
        rrc = config.aug.rrc
        self.resize_crop = UsualResizeCrop(rrc.canvas_time, rrc.freq_scale, rrc.time_scale)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        waveform, _ = soundfile.read(self.paths[index], dtype="float32")
        waveform = np.pad(waveform, (0, max(0, self.samples - len(waveform))))
        start = random.randint(0, len(waveform) - self.samples)
        power = librosa.feature.melspectrogram(
            y=waveform[start : start + self.samples],
            sr=self.frontend.sample_rate_hz,
            n_fft=self.frontend.n_fft,
            hop_length=self.frontend.hop_samples,
            n_mels=self.frontend.n_mels,
            fmin=self.frontend.fmin_hz,
            fmax=self.frontend.fmax_hz,
        )
        log_mel = torch.from_numpy((np.log(power + self.frontend.log_floor) - self.mean) / self.std)[None]
        return self.resize_crop(self.mixup(log_mel)), self.resize_crop(self.mixup(log_mel)), index


def usual_loader(
    paths: list[Path], config: Config, *, mean: float, std: float, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """Batches of two views (B, 1, F, T) and clip numbers (B,), shuffled, from `workers` processes that stay."""
    dataset = UsualDataset(paths, config, mean, std)
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
