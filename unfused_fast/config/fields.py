"""Every number of a run: one frozen dataclass per part; each field carries value, unit and source.

"Paper" is UnFuSeD (arXiv 2303.05668), "DECAR" arXiv 2110.08895, "authors" the code they released, "BYOL-A" arXiv
2103.06695. The data path is in audio.py, later stages are in stages.py. A preset (presets.py) is a set of values laid
over these; `unfused-fast config` prints fields, values and these texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unfused_fast.config.audio import AugmentConfig, DataConfig, FrontendConfig, ViewsConfig
from unfused_fast.config.bounds import (
    AT_LEAST_1,
    Auto,
    Bound,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    ShareBelow1,
    ShareBetween,
)
from unfused_fast.config.methods import MethodConfig
from unfused_fast.config.stages import DistillConfig, EvalConfig, FinetuneConfig, PseudoConfig


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and projection head."""

    encoder: Literal["audiontt", "efficientnet_b0"] = "audiontt"
    """AudioNTT2020Task6 or EfficientNet-B0. Source: paper section 3 by its reference 21; DECAR section 5."""
    dim: Count = 2048
    """Width of AudioNTT's fully connected block = size of an embedding. Source: paper section 4 (R^2048)."""
    channels: Count = 64
    """Channels of AudioNTT's three convolution blocks. Source: the encoder's paper; fewer for quick trials."""
    fc_layers: Literal[2, 3] = 2
    """Fully connected layers of AudioNTT's last block, 2 or 3. Source: the encoder's paper (2), as in pre-training; the
    authors' distillation code has 3.
    """
    dropout: ShareBelow1 = 0.3
    """Dropout between the fully connected layers. Source: authors."""
    pool: Literal["maxmean", "mean", "max"] = "maxmean"
    """Pooling over time into one embedding: max + mean, mean, or max. Source: authors, BYOL-A; DECAR section 5 (max).
    The authors' evaluation code uses the mean alone.
    """
    projector: Literal["batchnorm", "dropout", "linear", "mlp", "batchnorm3", "layernorm"] = "batchnorm"
    """Projection head: Linear-BatchNorm-ReLU-Linear; DECAR-v1's g, Dropout-Linear-ReLU-Dropout-Linear, whose last ReLU
    comes before the prediction head only; one Linear; Linear-ReLU-Linear; Linear-BatchNorm-ReLU twice, then Linear,
    without biases; or Linear-LayerNorm-tanh. Source: authors of UnFuSeD; of DECAR; of LAPE's MoCo; of MoCo v2; of
    DeLoRes and Barlow Twins; of COLA.
    """
    proj_dropout: ShareBelow1 = 0.5
    """Dropout before both layers of the `dropout` projector. Source: authors of DECAR."""
    proj_hidden: Count = 2048
    """Hidden width of a projection head of several layers. Source: authors (the paper says: multiple linear layers)."""
    proj_dim: Count = 512
    """Output size of the projection head, D of the memory bank. Source: paper section 4."""
    l2_normalize: bool = True
    """Projections get unit norm. Source: paper section 3; the authors' code does not."""
    sync_bn: bool = True
    """On several ranks BatchNorm is over the batch of all of them; else over each one's share, and the running
    statistics are rank 0's. Source: authors (SyncBN).
    """


@dataclass(frozen=True)
class ClusterConfig:
    """Clustering of the memory bank."""

    algo: Literal["spherical", "pca_kmeans", "pic"] = "spherical"
    """Spherical k-means; PCA, whitening, L2, then k-means; or the same, then Power Iteration Clustering, which finds
    the number of clusters. Source: paper section 3; DECAR sections 3 and 7.
    """
    k: Annotated[int | Auto | tuple[int, ...], AT_LEAST_1] = 512
    """Clusters, 2 or more; `pic` does not read it. Source: paper section 4 (512); DECAR Table 3 tries 256, 512, 1024;
    the authors' code has 1024. `auto`: 512, or one for every 8 clips where that is fewer. Several numbers: a head
    each, on the same bank (DeepCluster-v2). Of `swav` the prototypes (its authors: 3,000), of `slicer` the outputs of
    its cluster head (128).
    """
    iterations: Count = 10
    """k-means iterations. Source: authors (10 spherical, 20 after PCA)."""
    pca_dim: Annotated[int | Auto, AT_LEAST_1] = "auto"
    """Principal components that `pca_kmeans` and `pic` cluster. Source: DECAR section 3 (128). `auto`: 128, or one for
    every 16 clips where that is fewer (ours: as many whitened components as clips make all of them equally far apart).
    """
    whiten: bool = True
    """Scale principal components to unit variance. Source: DECAR section 3."""
    pic_neighbours: Count = 5
    """Nearest neighbours of a clip in the graph of `pic`. Source: authors of DECAR, from DeepCluster."""
    pic_sigma: Positive = 0.2
    """Width of the graph's kernel exp(-distance^2 / sigma^2), as a distance of unit rows. Source: as pic_neighbours."""
    pic_alpha: ShareBetween = 0.001
    """Share of the uniform start vector that each power iteration adds. Source: as pic_neighbours."""
    pic_iterations: Count = 200
    """Power iterations. Source: as pic_neighbours."""
    init: Literal["random", "kmeans++", "warm"] = "random"
    """Initial centroids: random rows, cosine k-means++, or the last epoch's, whose clusters then keep their ids.
    Source: authors (random rows, each epoch).
    """
    n_init: Count = 1
    """Starts, of which the largest mean cosine wins; after `warm` all but the first are random rows. Source: authors
    (1).
    """
    empty: Literal["keep", "split", "reseed"] = "keep"
    """An empty cluster keeps its centroid, takes half of the largest, or starts again from the row farthest from its
    centroid. Source: authors (keep).
    """
    every_epochs: Count = 1
    """Epochs from one clustering to the next. Source: paper section 3."""
    backend: Literal["auto", "torch", "triton", "faiss", "cuml"] = "auto"
    """What computes nearest centroids; all give the same assignments. Ours: `auto` is triton on a GPU and, for
    float32 rows, faiss on a CPU that has it, else torch.
    """

    @property
    def heads(self) -> tuple[int | Auto, ...]:
        """Clusters of each head."""
        return self.k if isinstance(self.k, tuple) else (self.k,)


@dataclass(frozen=True)
class PrototypesConfig:
    """Prototypes of pre-training."""

    freeze: bool = True
    """Prototypes stay the centroids until the next clustering; false: SGD at `optim.head_lr` trains them between two
    clusterings, and they keep norm 1. Source: paper section 3 (frozen); DeepCluster-v2 can train them.
    """


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy of scores, and what is added to it."""

    temperature: Positive = 0.1
    """Divides the scores before the softmax: of prototypes in `decar-v2` and `swav`, of pairs of views in `moco`,
    `delores-m`, `slicer` and, by cosine, `simclr`; others do not read it. Source: DeepCluster-v2's default; at 1
    unit-norm scores are nearly uniform. The authors' code has 1, on projections of any norm.
    """
    instance: Literal["none", "simclr", "barlow"] = "none"
    """A term that compares a clip's two views, beside the clusters of `decar-v2`, on the same projections: NT-Xent, or
    the loss of Barlow Twins divided by its outputs (methods/instance.py). Both views then predict the clip's cluster;
    the first fills the bank, or with `bank.view` = separate a third. Source: PCL, arXiv 2005.04966 (prototypes and
    InfoNCE); DeepCluster-v2 (every view predicts). Ours: with DECAR-v2, and Barlow Twins; the paper has none.
    """
    instance_weight: PositiveOrZero = 1.0
    """Factor of that term; 0 leaves two views that predict clusters. Source: PCL, which has none (1)."""
    instance_temperature: Positive = 0.2
    """Divides the cosines of that term's NT-Xent. Source: Fonseca et al., arXiv 2011.07616 (0.2, on audio)."""


@dataclass(frozen=True)
class BankConfig:
    """The memory bank."""

    fill: Literal["training", "pass"] = "training"
    """Where rows come from: the last epoch's training steps, or a pass in eval mode over clips as they are, without
    augmentation, before each clustering. Source: paper section 3; DECAR section 3 (two passes an epoch).
    """
    view: Literal["separate", "training"] = "separate"
    """Which view's projections become rows while training fills the bank. `separate`: those of a second view, from a
    forward pass without gradient; `training`: those that gave the loss, computed before the step. Not read with `fill`
    = pass. Source: authors (separate); paper section 3, which stores rows right after back-propagation, and SwAV's
    authors (training). Ours: `recommended` has training, not shown to learn less (docs/results/corpus.md), and faster.
    """
    encoder: Literal["own", "follower"] = "own"
    """Which network's projections become rows. `own`: the network's; `follower`: those of its moving average
    (`method.ema`), from a forward pass without gradient over the bank's view, or else the first view that gives the
    loss. Source: paper section 3 (own). Ours: follower, as PCL clusters what its momentum encoder gives, arXiv
    2005.04966.
    """
    init_mode: Literal["eval", "train"] = "train"
    """Mode of the network while the bank is first filled. Source: authors (train). In eval mode BatchNorm has no
    statistics yet, so all rows point the same way (docs/recipe.md).
    """
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the rows, on the device and on disk. Source: authors (fp32); bf16 halves both, and keeps 8 bits of each
    number.
    """

    @property
    def own_forward(self) -> bool:
        """Whether a clip's row costs a forward pass beside the one that gives its loss."""
        return self.fill == "pass" or self.view == "separate" or self.encoder == "follower"

    @property
    def views(self) -> int:
        """Whole views of a clip in a training step without an instance term; the last gives the loss."""
        return 2 if self.fill == "training" and self.view == "separate" else 1


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: Literal["larc", "lars", "sgd", "adamw", "muon"] = "larc"
    """SGD with layer-wise adaptive rates (LARC; LARS has the rate inside the momentum), plain SGD, AdamW, or Muon with
    AdamW for biases, norms and class scores. Source: authors (LARC, pre-training; SGD, distillation); DECAR section 5
    (SGD; fine-tuning: Adam, which AdamW without weight decay is); arXiv 1708.03888 (LARS), 2502.16982 (Muon, with
    updates of AdamW's size, so that `lr` is that of AdamW).
    """
    lr: Positive = 0.005
    """Base learning rate. Source: paper section 4 (0.005 of pre-training, 0.007 of distillation); DECAR section 5
    (0.05, and 0.001 of fine-tuning). Ours: `recommended` pre-trains at 1, since LARC with trust 0.001 moves a layer by
    5e-6 of its norm a step at 0.005.
    """
    momentum: ShareBelow1 = 0.9
    """Momentum of SGD, LARC, LARS and Muon; first beta of AdamW. Source: authors (Muon's author: 0.95)."""
    weight_decay: PositiveOrZero = 1e-6
    """L2 weight decay (decoupled for AdamW and Muon). Source: authors."""
    trust: Positive = 0.001
    """Trust coefficient of LARC and LARS. Source: authors."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Linear warm-up then cosine to 0, or constant. Source: the authors build the first but never apply it."""
    warmup_epochs: PositiveOrZero = 10
    """Length of the warm-up, in epochs (at most a tenth of a shorter run). Source: authors."""
    exclude_1d: bool = False
    """Keep weight decay and adaptive rates off biases and BatchNorm. Source: authors (false)."""
    head_lr: Positive = 0.05
    """Rate of the own SGD of DECAR-v1's linear head, or of prototypes that are trained (`prototypes.freeze` = false,
    `swav`); it has no momentum. Source: authors of DECAR.
    """
    head_weight_decay: PositiveOrZero = 1e-5
    """Its L2 weight decay. Source: authors of DECAR."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: Count = 100
    """Passes over the train split. Source: paper section 4 (100 pre-training, 50 distillation); DECAR section 5 (at
    most 50 fine-tuning); the authors' code has 200 of pre-training, 100 of evaluation.
    """
    batch_size: Annotated[int | Auto, Bound("at least 2", lambda clips: clips >= 2)] = 512
    """Clips a step, over all ranks. Source: paper section 4 (512); DECAR section 5 (64, fine-tuning too); the authors'
    distillation has 256, their evaluation 32. `auto`: 512, or a sixteenth of a small set (at least 16).
    """
    accumulate: Count = 1
    """Parts of a batch, of at least two clips, that go through the network one after the other before a step, for a
    batch that does not fit. Ours: gradients are those of the whole batch, but BatchNorm sees a part, as the paper's
    would on more ranks without SyncBN, and losses that compare the clips of a batch (`simclr`, `barlow`, `delores-s`,
    `delores-m`, `swav`, `slicer`, `distill.contrast`) compare those of a part.
    """
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Number format in which ranks add up gradients; bf16 halves the message. Ours."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast of forward passes; `auto` is bf16 where the device has it in hardware; `fp32` is float32 in convolutions
    too, not PyTorch's TF32 on a GPU. Ours: the authors use fp32.
    """
    seed: Annotated[int, Bound("at least 0 and below 2**31", lambda seed: 0 <= seed < 2**31)] = 0
    """Seeds weights, order, views, clustering."""
    patience: CountOrZero = 0
    """Epochs without a new best NMI of consecutive clusterings after which pre-training stops; 0: never. Source: DECAR
    section 5 (10); UnFuSeD has none.
    """
    save_every: Count = 1
    """Epochs from one checkpoint to the next; the last epoch is always saved."""

    def clips_a_step(self, clips: int) -> int:
        """The batch size on a set of so many clips: at most as many, so that an epoch has a step."""
        if self.batch_size == "auto":
            return min(512, max(16, 1 << max(0, (clips // 16).bit_length() - 1)), clips)
        return min(self.batch_size, clips)


@dataclass(frozen=True)
class Config:
    """One run. Sections that a stage does not use stay at their defaults."""

    method: MethodConfig = field(default_factory=MethodConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    aug: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    @property
    def whole_views(self) -> int:
        """Whole views of a clip in a step of `decar-v2` and `decar-v1`: the bank's own, if any, then those that give
        the loss, beside local ones.
        """
        return self.bank.views + (self.loss.instance != "none")

    @property
    def trained_frames(self) -> tuple[int, ...]:
        """Log-mel frames of each view that gives their loss, local ones last."""
        whole = self.whole_views - (self.bank.views - 1)
        return (self.crop_frames,) * whole + (self.local_frames,) * self.views.local

    @property
    def crop_frames(self) -> int:
        """Log-mel frames of a training crop: 1 + samples // hop, as librosa counts with centring (96 for 0.95 s)."""
        return self.frames_of(self.data.crop_seconds)

    @property
    def local_frames(self) -> int:
        """Log-mel frames of a local view."""
        return self.frames_of(self.views.local_seconds)

    def frames_of(self, seconds: float) -> int:
        """Log-mel frames of so many seconds."""
        return 1 + round(seconds * self.frontend.sample_rate_hz) // self.frontend.hop_samples
