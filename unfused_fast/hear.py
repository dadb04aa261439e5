"""The HEAR 2021 API, so that its evaluation runs on a trained encoder: `--module unfused_fast.hear --model RUN`.

Source: https://hearbenchmark.com/hear-api.html. Steps are 80 ms apart for AudioNTT; HEAR suggests 50 ms or less for the
transcription of music.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unfused_fast.config import SHIPPED
from unfused_fast.embedding import Embedder, load
from unfused_fast.errors import UserError
from unfused_fast.training import WEIGHTS


def load_model(model_file_path: str = "") -> Embedder:
    """The encoder of a run or a model folder, or of the model.safetensors in one, on the CPU; without a path that of
    the package, `base`. Raises UserError as embedder.load.
    """
    path = Path(model_file_path or SHIPPED)
    return load(path.parent if path.name == WEIGHTS else path, device="cpu")


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """(n_sounds, n_samples) float32 in [-1, 1] at 16 kHz -> (n_sounds, scene_embedding_size) float32, on the model's
    device. Raises UserError for another shape.
    """
    return model.embed(_batch(audio), model.sample_rate)


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    """As get_scene_embeddings -> (n_sounds, n_timestamps, timestamp_embedding_size) float32, and (n_sounds,
    n_timestamps) float32 milliseconds of the centre of each step, ascending.
    """
    embeddings, timestamps = model.embed_frames(_batch(audio), model.sample_rate)
    return embeddings, timestamps.contiguous()


def _batch(audio: Tensor) -> Tensor:
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2:
        found = tuple(audio.shape) if isinstance(audio, torch.Tensor) else type(audio).__name__
        raise UserError(f"audio is {found}: want a tensor (n_sounds, n_samples)")
    return audio
