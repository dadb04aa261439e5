"""The numbers of evaluation on frozen features, and of fine-tuning. Sources are abbreviated as in fields.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unfused_fast.config.audio import Auto, check, positive


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on frozen features."""

    encoder: Literal["full", "student3"] = "full"
    """The whole encoder, or its three convolution blocks (the paper's f_sd^s). Source: authors evaluate the whole."""
    pool: Literal["maxmean", "mean", "max"] = "maxmean"
    """Pooling over the whole clip. Source: as in pre-training; the authors' evaluation code uses the mean alone."""
    crop: Literal["full", "centre", "random"] = "full"
    """What of a clip is embedded: all of it, or `seconds` of it in the middle or anywhere (one place a clip, by
    `train.seed`). Ours: full; the authors' code draws anew each epoch, on the test too.
    """
    seconds: float | Auto = "auto"
    """Length of such a crop, in seconds; a shorter clip is taken whole. Source: authors. `auto`: their window of the
    task where the set is one of LAPE's, else the crop that the encoder was trained on.
    """
    encoder_mode: Literal["eval", "train"] = "eval"
    """Mode of the frozen encoder over the train split. Ours: eval; `train` is for parity: dropout is active, BatchNorm
    takes each batch's statistics and moves its own towards them, with which valid and test are then embedded. The
    authors' code does so in every epoch, ours once.
    """
    standardize: bool = True
    """Scale features by mean and standard deviation over the train split. Ours: heads of one rate fit every encoder."""
    lr: float = 0.001
    """The paper's learning rate (Adam), always among those tried. Source: paper section 4."""
    lr_grid: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
    """Learning rates trained side by side; validation picks one. Ours: each encoder gets its own best rate."""
    batch_size: int = 32
    """Clips a step. Source: paper section 4."""
    epochs: int = 50
    """Passes over the features. Source: paper section 4 (50); the authors' code has 100."""
    neighbours: int = 10
    """k of the k-nearest-neighbours classifier (cosine, votes by distance). Ours: few, for small classes."""
    select: Literal["valid", "best_test"] = "valid"
    """How a head is chosen: its rate by validation, after the last epoch; or rate and epoch by the test itself, which
    gives too high a number, for use beside numbers that were made so. Fine-tuning has one rate, and chooses its epoch
    by validation or by the test. Ours: valid; the authors' code takes the best test epoch.
    """
    weight_decay: float = 0.0
    """L2 penalty of the heads. Source: authors (none)."""
    label_fraction: float = 1.0
    """Share of the train labels used, at least one per class, chosen by seed. Ours: 0.1 shows the low-label case."""
    valid_fraction: float = 0.15
    """Share of train groups held out for selection where the set has no valid split. Ours."""
    shuffle_labels: bool = False
    """Permute labels within each split: the score must fall to chance. Ours: a check of the whole path against
    leaks.
    """

    def __post_init__(self) -> None:
        positive("eval", lr=self.lr, batch_size=self.batch_size, epochs=self.epochs)
        check(self.seconds == "auto" or self.seconds > 0, f"eval.seconds = {self.seconds}: want more than 0, or auto")
        positive("eval", neighbours=self.neighbours)
        check(
            all(rate > 0 for rate in self.lr_grid), f"eval.lr_grid = {self.lr_grid}: every rate must be greater than 0"
        )
        check(0 < self.label_fraction <= 1, f"eval.label_fraction = {self.label_fraction}: want 0 < fraction <= 1")
        check(0 < self.valid_fraction < 1, f"eval.valid_fraction = {self.valid_fraction}: want 0 < fraction < 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of encoder and linear head together. Optimiser, rate, batch and epochs are those of `optim` and
    `train`; selection, few labels and held-out clips those of `eval`.
    """

    augment: bool = False
    """Train on views as this preset's pre-training does (`aug`: mixup, random resize crop, masks), else on plain random
    crops. Source: DECAR section 5 and the authors' evaluation code name no augmentation.
    """
