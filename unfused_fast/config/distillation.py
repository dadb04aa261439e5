"""The numbers of stage 2: pseudo-labels and self-distillation. Sources are abbreviated as in fields.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unfused_fast.config.audio import Auto, check, positive


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo-labels of the target data (paper section 3, part 2)."""

    feature: Literal["encoder", "projector", "block1", "block2", "block3"] = "encoder"
    """What of the teacher is clustered. Source: paper Algorithm 1 (f_pre(X)); authors: projector, or block1 in LAPE."""
    k: int | Auto = "auto"
    """Clusters; `auto` is the number of classes of the set. Source: paper Algorithm 1 (K = t)."""
    pca_dim: int | Auto = 128
    """PCA before clustering, 0 for none. Source: authors; DECAR section 3. `auto`: 128, or one for every 16 clips where
    that is fewer (ours: whitening 128 directions of a few hundred clips makes noise as loud as sound).
    """
    whiten: bool = True
    """Scale principal components to unit variance. Source: authors; DECAR section 3."""
    iterations: int = 20
    """k-means iterations. Source: authors."""
    n_init: int = 10
    """Restarts; the one of least inertia wins. Ours: the authors run one with a random seed."""
    seconds: float = 0.0
    """Length of the window of a clip that is clustered, in seconds; 0: all of it. Ours: all; the authors' code has 12
    (LibriSpeech), or 0.95 in LAPE.
    """
    crop: Literal["centre", "start", "random"] = "centre"
    """Position of the window; `random`: a new one at each clustering. Ours: centre; the authors' code has start, or
    random in LAPE.
    """
    splits: tuple[str, ...] = ("train",)
    """Splits whose clips shape the clusters, without their labels; the student learns from `train` alone. Source:
    authors (train).
    """
    refresh_epochs: int = 0
    """Epochs from one clustering to the next, from another random start, clusters named as most of their clips were
    before; 0: once. Source: authors (once); paper Algorithm 1 has k-means inside the loop.
    """

    def __post_init__(self) -> None:
        check(self.seconds >= 0, f"pseudo.seconds = {self.seconds}: want 0 (whole clips) or more")
        check(self.refresh_epochs >= 0, f"pseudo.refresh_epochs = {self.refresh_epochs}: want 0 (once) or more")
        check(
            "train" in self.splits and len(set(self.splits)) == len(self.splits),
            f"pseudo.splits = {','.join(self.splits)}: want train, and optionally others, each once",
        )
        check(self.k == "auto" or self.k >= 1, f"pseudo.k = {self.k}: want at least 1, or auto")
        check(self.pca_dim == "auto" or self.pca_dim >= 0, f"pseudo.pca_dim = {self.pca_dim}: want 0 or more")
        positive("pseudo", iterations=self.iterations, n_init=self.n_init)


@dataclass(frozen=True)
class DistillConfig:
    """Self-distillation, paper Eq. 1."""

    alpha: float = 0.7
    """Weight of the blocks' cross-entropies; 1 - alpha weighs the KL terms. Source: paper section 4."""
    beta: float = 0.003
    """Weight of the MSE terms. Source: paper section 4."""
    kl_temperature: float = 1.0
    """Divides both sides' logits inside the KL terms. Source: authors (1)."""
    detach_teacher: bool = False
    """Stop gradients of KL and MSE into the deepest classifier. Source: authors (false)."""
    mse: Literal["cos_logits", "logits", "features"] = "cos_logits"
    """MSE of unit-norm logits (2 - 2 cos), of plain logits, or of a linear map of each block's features and the
    deepest's. Source: authors; the paper's own dimensions do not fit, and `features` is a reading of its text.
    """
    head: Literal["mlp3", "linear"] = "mlp3"
    """Heads of the blocks: three linear layers with BatchNorm and ReLU between, or one. Source: authors."""
    init: Literal["random", "teacher"] = "random"
    """First weights of f_sd's encoder: random, or the teacher's, whose sizes must then be its own. Source: paper
    section 3. Ours: teacher, to measure what the random start costs.
    """

    def __post_init__(self) -> None:
        check(0 <= self.alpha <= 1, f"distill.alpha = {self.alpha}: want 0 <= alpha <= 1")
        check(self.beta >= 0, f"distill.beta = {self.beta}: want 0 or more")
        positive("distill", kl_temperature=self.kl_temperature)
