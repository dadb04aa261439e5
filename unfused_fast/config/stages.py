"""The numbers of stage 2, of evaluation and of fine-tuning. Sources are abbreviated as in fields.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from unfused_fast.config.bounds import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    Auto,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Share,
    ShareAbove0,
    ShareBetween,
)


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo-labels of the target data (paper section 3, part 2)."""

    feature: str = "encoder"
    """What of the teacher is clustered: projector, or layers as in `eval.features`. One block alone is averaged over
    time, others are pooled by the teacher's `model.pool`. Source: paper Algorithm 1 (f_pre(X)); authors: projector, or
    block1 in LAPE.
    """
    k: Annotated[int | Auto, AT_LEAST_1] = "auto"
    """Clusters, 2 or more. `auto`: the number of classes of the set, which is all that is read of the labels. Source:
    paper Algorithm 1 (K = t).
    """
    pca_dim: Annotated[int | Auto, AT_LEAST_0] = 128
    """PCA before clustering, 0 for none. Source: authors; DECAR section 3. `auto`: 128, or one for every 16 clips where
    that is fewer (ours: whitening 128 directions of a few hundred clips makes noise as loud as sound).
    """
    whiten: bool = True
    """Scale principal components to unit variance. Source: authors; DECAR section 3."""
    iterations: Count = 20
    """k-means iterations. Source: authors."""
    n_init: Count = 10
    """Restarts; the one of least inertia wins. Ours: the authors run one with a random seed."""
    seconds: PositiveOrZero = 0.0
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
    refresh_epochs: CountOrZero = 0
    """Epochs from one clustering to the next, from another random start, clusters named as most of their clips were
    before; 0: once. Source: authors (once); paper Algorithm 1 has k-means inside the loop.
    """


@dataclass(frozen=True)
class DistillConfig:
    """Self-distillation, paper Eq. 1."""

    alpha: Share = 0.7
    """Weight of the blocks' cross-entropies; 1 - alpha weighs the KL terms. Source: paper section 4."""
    beta: PositiveOrZero = 0.003
    """Weight of the MSE terms. Source: paper section 4."""
    kl_temperature: Positive = 1.0
    """Divides both sides' logits inside the KL terms. Source: authors (1)."""
    detach_teacher: bool = False
    """Stop gradients of KL and MSE into the deepest classifier. Source: authors (false)."""
    mse: Literal["cos_logits", "logits", "features"] = "cos_logits"
    """MSE of unit-norm logits (2 - 2 cos), of plain logits, or of a linear map of each block's features and the
    deepest's. Source: authors; the paper's own dimensions do not fit, and `features` is a reading of its text.
    """
    head: Literal["mlp3", "linear"] = "mlp3"
    """Heads of the blocks: three linear layers with BatchNorm and ReLU between, or one. Source: authors."""
    contrast: PositiveOrZero = 0.0
    """Weight of SimCLR's contrast of two views of a clip, by `loss.temperature`, beside Eq. 1, which is then the mean
    of both views'; 0: none, and one view. Source: arXiv 2210.02871, which keeps the objective of pre-training on the
    target's clips. Ours: `recommended` has 10, since Eq. 1 is a sum of ten terms (docs/stage2.md).
    """
    init: Literal["random", "teacher"] = "random"
    """First weights of f_sd's encoder: random, or the teacher's, whose sizes must then be its own. Source: paper
    section 3. Ours: `recommended` has teacher (docs/stage2.md).
    """
    teacher_share: Share = 0.0
    """Share of the teacher's weights in f_sd's encoder at the end: after the last epoch its weights and BatchNorm
    statistics become a mean of both. `init` = random does not read it. Source: arXiv 2109.01903 (WiSE-FT). Ours:
    `recommended` has 0.5 (docs/stage2.md).
    """


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on frozen features."""

    encoder: Literal["full", "student3"] = "full"
    """The whole encoder, or its three convolution blocks (the paper's f_sd^s). Source: authors evaluate the whole."""
    features: str = "encoder"
    """Layers that are evaluated: projector, encoder, block1, block2, block3, several side by side with + between
    (block3+encoder), or all. Source: paper section 3; BYOL-A v2 has block3+encoder. Ours: the others.
    """
    pool: Literal["maxmean", "mean", "max"] = "maxmean"
    """Pooling over the whole clip, of each layer by itself. Source: as in pre-training; the authors' evaluation code
    uses the mean alone.
    """
    crop: Literal["full", "centre", "random"] = "full"
    """What of a clip is embedded: all of it, or `seconds` of it in the middle or anywhere (one place a clip, by
    `train.seed`). Ours: full; the authors' code draws anew each epoch, on the test too.
    """
    seconds: Annotated[float | Auto, ABOVE_0] = "auto"
    """Length of such a crop, in seconds; a shorter clip is taken whole. Source: authors. `auto`: the window of
    the authors' code for a LAPE task, for another set the crop that the encoder was trained on.
    """
    encoder_mode: Literal["eval", "train"] = "eval"
    """Mode of the frozen encoder over the train split. Ours: eval; `train` is for parity: dropout is active, BatchNorm
    takes each batch's statistics and moves its own towards them, with which valid and test are then embedded. The
    authors' code does so in every epoch, ours once.
    """
    standardize: bool = True
    """Scale features by mean and standard deviation over the train split. Ours: heads of one rate fit every encoder."""
    lr: Positive = 0.001
    """The paper's learning rate (Adam), always among those tried. Source: paper section 4."""
    lr_grid: Annotated[tuple[float, ...], ABOVE_0] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
    """Learning rates trained side by side; validation picks one. Ours: each encoder gets its own best rate."""
    batch_size: Count = 32
    """Clips a step. Source: paper section 4."""
    epochs: Count = 50
    """Passes over the features. Source: paper section 4 (50); the authors' code has 100."""
    neighbours: Count = 10
    """k of the k-nearest-neighbours classifier (cosine, votes by distance). Ours: few, for small classes."""
    select: Literal["valid", "best_test"] = "valid"
    """How a head is chosen: its rate by validation, after the last epoch; or rate and epoch by the test itself, which
    gives too high a number, for use beside numbers that were made so. Fine-tuning has one rate, and chooses its epoch
    by validation or by the test. Ours: valid; the authors' code takes the best test epoch.
    """
    weight_decay: PositiveOrZero = 0.0
    """L2 penalty of the heads. Source: authors (none)."""
    label_fraction: ShareAbove0 = 1.0
    """Share of the train labels used, at least one per class, chosen by seed. Ours: 0.1 shows the low-label case."""
    valid_fraction: ShareBetween = 0.15
    """Share of train groups held out for selection where the set has no valid split. Ours."""
    shuffle_labels: bool = False
    """Permute labels within each split: the score must fall to chance. Ours: a check of the whole path against
    leaks.
    """


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of encoder and linear head together. Optimiser, rate, batch and epochs are those of `optim` and
    `train`; selection, few labels and held-out clips those of `eval`.
    """

    augment: bool = False
    """Train on views as this preset's pre-training does (`aug`: mixup, random resize crop, masks), else on plain random
    crops. Source: DECAR section 5 and the authors' evaluation code name no augmentation.
    """
