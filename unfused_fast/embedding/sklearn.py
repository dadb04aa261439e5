"""A trained encoder as a step of a scikit-learn Pipeline.   N clips, D features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor

from unfused_fast.data import check_batch, clips_16k
from unfused_fast.embedding.embedder import Embedder, load
from unfused_fast.errors import UserError
from unfused_fast.models import Pool
from unfused_fast.shards.audio.decode import decode_whole
from unfused_fast.shards.sources.reasons import Rejected

Clip = str | Path | NDArray[np.floating]


class UnfusedEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Audio to embeddings: `make_pipeline(UnfusedEmbedder("run"), LogisticRegression())`.

    Nothing is learnt from X: fit loads the encoder. X is a list of paths of audio files of any rate, of arrays
    (samples,) float in [-1, 1], or of both; or one array (N, samples).

    Args:
        encoder: base, a run of train pretrain, distill or finetune, a model folder, or hf://USER/NAME.
        pool: over time, "maxmean", "mean" or "max"; None: as the encoder was trained.
        features: layers side by side, as `eval.features`.
        sample_rate: of arrays, in hertz; files contain their own.
        device: auto, cpu, cuda or cuda:N.
        batch_size: clips that are decoded at a time.
    """

    def __init__(
        self,
        encoder: str | Path,
        pool: Pool | None = None,
        sample_rate: int = 16000,
        device: str = "auto",
        batch_size: int = 64,
        features: str = "encoder",
    ) -> None:
        self.encoder = encoder
        self.pool = pool
        self.sample_rate = sample_rate
        self.device = device
        self.batch_size = batch_size
        self.features = features

    def fit(self, X: Sequence[Clip] | NDArray[np.floating], y: Any = None) -> Self:
        """Loads the encoder. Raises UserError: as embedder.load."""
        self.embedder_: Embedder = load(self.encoder, self.device, self.pool, self.features)
        self._n_features_out = self.embedder_.scene_embedding_size
        return self

    def transform(self, X: Sequence[Clip] | NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, D) float32. Raises UserError: not fitted, no such batch_size, a file that cannot be used, or what
        Embedder.embed refuses.
        """
        if not hasattr(self, "embedder_"):
            raise UserError("UnfusedEmbedder is not fitted; call fit first, which loads the encoder")
        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise UserError(f"batch_size = {self.batch_size}: want a whole number of clips, 1 or more")
        check_batch(X)
        rows, clips = [np.empty((0, self.embedder_.scene_embedding_size), np.float32)], iter(X)
        while some := list(islice(clips, self.batch_size)):
            waves = [_decoded(clip, self.sample_rate) for clip in some]
            rows.append(self.embedder_.embed(waves, self.embedder_.sample_rate).cpu().numpy())
        return np.concatenate(rows)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "embedder_")


def _decoded(clip: Clip, sample_rate: int) -> Tensor:
    """(samples,) float32 at 16 kHz of an array, or of a file, rounded to 16 bit as `shard` does."""
    if not isinstance(clip, str | Path):
        return clips_16k([clip], sample_rate)[0]
    try:
        pcm = decode_whole(Path(clip))
    except Rejected as error:
        raise UserError(f"{clip}: {error}; leave it out, or repair it") from error
    return torch.from_numpy(pcm.astype(np.float32) / 32768)
