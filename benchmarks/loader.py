"""How many training crops a second the DALI graph yields, beside the usual loader (librosa per clip in DataLoader
workers).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from measure import record, repeat
from torch.utils.data import DataLoader, Dataset

from unfused_fast.config import Config
from unfused_fast.mel import log_mel_statistics
from unfused_fast.pipeline import Loader
from unfused_fast.shards.rows import SourceRow
from unfused_fast.shards.write import pack


class UsualDataset(Dataset[tuple[torch.Tensor, int]]):
    """What most audio code does for each clip: read the file, crop, librosa log-mel."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        waveform, _ = soundfile.read(self.paths[index], dtype="float32")
        start = np.random.randint(0, len(waveform) - 15200)
        power = librosa.feature.melspectrogram(
            y=waveform[start : start + 15200], sr=16000, n_fft=1024, hop_length=160, n_mels=64, fmin=60, fmax=7800
        )
        return torch.from_numpy(np.log(power + np.finfo(np.float32).eps))[None], index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device, workers = torch.device(given.device), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder, generator = Path(name), np.random.default_rng(0)
        rows = []
        for number in range(given.clips):
            path = folder / f"{number:06d}.wav"
            pcm = (generator.standard_normal(int(given.seconds * 16000)) * 3000).clip(-32768, 32767).astype(np.int16)
            soundfile.write(path, pcm, 16000)
            rows.append(SourceRow(path, path.name))
        for codec in ("wav", "flac"):
            shards = pack(rows, folder / codec, codec=codec, statistics=log_mel_statistics).shard_set
            loader = Loader(shards, "train", Config(), device=device, batch_size=given.batch_size)
            settings = {"clips": given.clips, "seconds": given.seconds, "batch": given.batch_size, "codec": codec}
            for views in (2, 1):
                rates = repeat(partial(epoch_rate, loader, views), given.repeats)
                what = f"DALI graph: crop, log-mel, SpecAugment; {views} view(s)"
                record("loader", what, "clips/s", rates, device, **settings)
        usual = DataLoader(
            UsualDataset([row.path for row in rows]),
            given.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
        )
        settings = {"clips": given.clips, "seconds": given.seconds, "batch": given.batch_size, "workers": workers}
        what = "usual loader: soundfile, librosa, DataLoader workers; 1 view"
        record("loader", what, "clips/s", repeat(partial(usual_rate, usual), 3), device, **settings)


def epoch_rate(loader: Loader, views: int) -> float:
    """Clips a second of one epoch."""
    start = time.perf_counter()
    seen = sum(len(batch.clip_ids) for batch in loader.epoch(1, views=views))
    if loader.device.type == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def usual_rate(usual: DataLoader[tuple[torch.Tensor, int]]) -> float:
    """Clips a second of one pass of the usual loader."""
    start = time.perf_counter()
    seen = sum(len(indices) for _, indices in usual)
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
