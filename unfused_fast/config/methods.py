"""Ways to learn without labels: the section `method`, and what each method sets for pre-training.

"Paper" is UnFuSeD (arXiv 2303.05668), "DECAR" arXiv 2110.08895, "authors" the code they released. A recipe is a set of
values laid over the defaults of fields.py: `recommended` is what we train by, `paper` a paper's text to the letter, its
silences filled as `recommended`, `authors` what released code does, its deviations included, its faults not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from unfused_fast.config.bounds import AT_LEAST_1, Auto, PositiveOrZero, Share

MethodName = Literal[
    "decar-v2", "decar-v1", "simclr", "moco", "byol", "barlow", "delores-s", "delores-m", "swav", "slicer"
]
PresetName = Literal["recommended", "paper", "authors", "decar-v1"]
Values = dict[str, Any]
"""Dotted name of a field -> its value."""


@dataclass(frozen=True)
class MethodConfig:
    """How pre-training learns without labels."""

    name: MethodName = "decar-v2"
    """The method: methods/ has a file for each. `--method` sets it together with the method's own values. Source: paper
    section 3 (DECAR-v2).
    """
    queue: Annotated[int | Auto, AT_LEAST_1] = 65536
    """Keys of earlier batches that a clip is told from (`moco`, `delores-m`, `slicer`), or projections that are
    assigned with a batch (`swav`); at most as many as clips. Source: authors of LAPE's MoCo; of SwAV (3,840). `auto`:
    65,536, of `swav` 3,840, or half of the clips where that is fewer (ours: a clip's own last key is then among them
    one time in eight, of as many keys as clips every second time).
    """
    ema: Share = 0.99
    """Share of its own weights that the following network (`moco`, `delores-m`, `slicer`, `byol`, and `decar-v2` with
    `bank.encoder` = follower) keeps in a step; 1: it stays as it began. Source: BYOL-A (0.99); authors of LAPE's MoCo
    (0.999).
    """
    similarity: Literal["cosine", "bilinear"] = "cosine"
    """How `simclr` compares clips: by cosine / `loss.temperature`, each view with all others (NT-Xent); or by x' W x
    with a trained W, first views with second ones. Source: arXiv 2002.05709; COLA, arXiv 2010.10915, and its authors.
    """
    barlow_lambda: PositiveOrZero = 0.005
    """Weight of correlations beside the diagonal in the loss of `barlow` and `delores-s`, and in each of the terms that
    `delores-m` adds to its contrast. Source: Audio Barlow Twins (0.005); arXiv 2103.03230 (0.0051); authors of DeLoRes
    (1, as they weight the diagonal too).
    """
    barlow_weight: PositiveOrZero = 1.0
    """Factor of that whole loss, or of each such term; 0 turns it off. Source: arXiv 2103.03230, which has none (1);
    authors of DeLoRes (5e-5 / 32).
    """


CONSTANT: Values = {"optim.schedule": "constant", "optim.warmup_epochs": 0}
AUTHORS: Values = {"data.crop_seconds": 0.98, "data.norm": "running", "train.amp": "fp32"}
NO_MASKS: Values = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
# DECAR section 5
DECAR: Values = {"frontend.kind": "decar1", "model.encoder": "efficientnet_b0", "model.pool": "max"}
# Authors of DECAR: time warp and masks of SpecAugment
DECAR_AUG: Values = {
    "aug.mixup.ratio": 0.0,
    "aug.rrc.enabled": False,
    "aug.specaug.warp": 5,
    "aug.specaug.freq_masks": 2,
    "aug.specaug.freq_width": 30,
    "aug.specaug.time_masks": 2,
    "aug.specaug.time_width": 40,
}
# Section 5: encoder, max-pooling, g of 512 units, SGD 0.05, batch 64, 100 epochs, patience 10. Table 2: PIC. Authors:
# g's two layers and dropout, momentum, weight decay, 20 k-means iterations, whole clips (of 10 s, section 4).
_DECAR_V1: Values = {
    **DECAR,
    **DECAR_AUG,
    **CONSTANT,
    "model.projector": "dropout",
    "model.proj_hidden": 512,
    "model.proj_dim": 512,
    "model.l2_normalize": False,
    "cluster.algo": "pic",
    "cluster.iterations": 20,
    "bank.fill": "pass",
    "data.sampler": "uniform_clusters",
    "data.crop_seconds": 10.0,
    "optim.name": "sgd",
    "optim.lr": 0.05,
    "optim.weight_decay": 1e-5,
    "train.batch_size": 64,
    "train.patience": 10,
}
# BYOL-A's optimiser (Adam, 3e-4) and augmentation (mixup, random resize crop, no masks). Ours: for each method that
# compares two views, with warm-up and cosine; AudioNTT learnt as well by Adam as by LARS, and better than by SGD, in
# the report of github.com/jonahanton/SSL_audio (Barlow Twins).
_TWO_VIEWS: Values = {
    **NO_MASKS,
    "optim.name": "adamw",
    "optim.lr": 3e-4,
    "optim.weight_decay": 0.0,
    "train.batch_size": "auto",
}
# Head and temperature of MoCo v2, arXiv 2003.04297. Ours: the key encoder follows faster than at 0.999, which halves
# what it keeps of its start in 693 steps, more than a short run has.
_MOCO: Values = {
    **_TWO_VIEWS,
    "model.projector": "mlp",
    "model.proj_dim": 128,
    "loss.temperature": 0.2,
    "method.queue": "auto",
    "method.ema": 0.99,
}
# LAPE's code: 128 clips on each of 4 GPUs. Its rate of MoCo was cut to 3e-4 in July 2023, after the papers' tables.
_LAPE: Values = {
    **NO_MASKS,
    **CONSTANT,
    "data.norm": "running",
    "train.amp": "fp32",
    "train.epochs": 50,
    "train.batch_size": 512,
    "optim.name": "sgd",
    "optim.lr": 0.03,
    "optim.weight_decay": 1e-4,
}
_LAPE_MOCO: Values = {
    **_LAPE,
    "model.projector": "linear",
    "model.proj_dim": 128,
    "loss.temperature": 0.07,
    "method.queue": 65536,
    "method.ema": 0.999,
}
_LAPE_BARLOW: Values = {"method.barlow_lambda": 1.0, "method.barlow_weight": 5e-5 / 32}
# Sizes of both versions of BYOL-A. Head of DeLoRes' authors, whose outputs are as many as their encoder's.
_BYOL_HEAD: Values = {"model.proj_hidden": 4096, "model.proj_dim": 256, "model.l2_normalize": False}
_DELORES_HEAD: Values = {"model.projector": "batchnorm3", "model.proj_dim": 2048, "model.l2_normalize": False}

RECIPES: dict[MethodName, dict[PresetName, Values]] = {
    "decar-v2": {
        # At the paper's 0.005 LARC (trust 0.001) moves a layer by 5e-6 of its norm a step: nothing in a short run.
        "recommended": {"optim.lr": 1.0, "cluster.k": "auto", "train.batch_size": "auto", "bank.view": "training"},
        "paper": {"bank.view": "training"},
        "authors": {
            **AUTHORS,
            **NO_MASKS,
            **CONSTANT,
            "cluster.k": 1024,
            "train.epochs": 200,
            "model.l2_normalize": False,
            "loss.temperature": 1.0,
        },
    },
    "decar-v1": {"recommended": _DECAR_V1, "decar-v1": _DECAR_V1},
    # Head and temperature: Fonseca et al.'s code, arXiv 2011.07616. Two crops: COLA; ours: docs/recipe.md.
    "simclr": {
        "recommended": {
            **_TWO_VIEWS,
            "views.same_crop": False,
            "model.proj_hidden": 512,
            "model.proj_dim": 512,
            "loss.temperature": 0.2,
        }
    },
    "moco": {"recommended": _MOCO, "authors": _LAPE_MOCO},
    "byol": {
        # Augmentation and normalisation of v2, arXiv 2204.07402.
        "recommended": {**_TWO_VIEWS, **_BYOL_HEAD, "aug.mixup.ratio": 0.2, "aug.fader": 1.0},
        # The code of v1, but for its last normalisation, of both views of a batch together; and its running one learns
        # for ten epochs, ours to the end.
        "authors": {
            **_TWO_VIEWS,
            **CONSTANT,
            "data.norm": "running",
            "train.amp": "fp32",
            "train.batch_size": 256,
            **_BYOL_HEAD,
        },
    },
    # Audio Barlow Twins (Hanton), whose search was on AudioNTT: lambda, head, mixup 0.2, fader. Its head follows an
    # encoder of 3,072; 1,048 outputs were enough, 16,384 worse. Its LARS has a rate of its own for biases.
    "barlow": {
        "recommended": {
            **_TWO_VIEWS,
            "model.proj_hidden": 8192,
            "model.proj_dim": 1048,
            "model.l2_normalize": False,
            "aug.mixup.ratio": 0.2,
            "aug.fader": 1.0,
        }
    },
    "delores-s": {
        "recommended": {**_TWO_VIEWS, **_DELORES_HEAD},
        # LAPE's code: 32 clips on each of 4 GPUs, which it correlates apart.
        "authors": {**_LAPE, **_LAPE_BARLOW, "train.batch_size": 128, **_DELORES_HEAD},
    },
    # Ours: the weight with which a term begins near 1, below the contrast's logarithm of the keys; of 2,048 outputs the
    # diagonal gives 2,048 then.
    "delores-m": {
        "recommended": {**_MOCO, "method.barlow_weight": 1 / 2048},
        "authors": {**_LAPE_MOCO, **_LAPE_BARLOW},
    },
    # Head and temperature of SwAV's code; its 3,000 prototypes are for ImageNet.
    "swav": {"recommended": {**_TWO_VIEWS, "model.proj_dim": 128, "cluster.k": "auto", "method.queue": "auto"}},
    # Clusters: its authors. LAPE's code has mixup, resize crop, then k-mix by a memory of its own, and the rate of 3e-4
    # of July 2023; here k-mix takes the place of mixup.
    "slicer": {
        "recommended": {**_MOCO, "cluster.k": 128, "aug.mixup.partner": "farthest"},
        "authors": {**_LAPE_MOCO, "cluster.k": 128, "aug.mixup.partner": "farthest"},
    },
}
