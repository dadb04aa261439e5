"""Ways to learn without labels: the section `method`, and what each method sets for pre-training.

"Paper" is UnFuSeD (arXiv 2303.05668), "DECAR" arXiv 2110.08895, "authors" the code they released. A recipe is a set of
values laid over the defaults of fields.py: `recommended` is what we train by, `paper` a paper's text to the letter, its
silences filled as `recommended`, `authors` what released code does, its deviations included, its faults not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from unfused_fast.config.bounds import AT_LEAST_1, Auto, Share
from unfused_fast.errors import UserError

MethodName = Literal["decar-v2", "decar-v1"]
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
    """Keys of earlier batches that a clip is told from; at most as many as clips. Source: authors of LAPE's MoCo.
    `auto`: 65,536, or half of the clips where that is fewer (ours: a clip's own last key is then among them one
    time in eight, of as many keys as clips every second time).
    """
    ema: Share = 0.99
    """Share of its own weights that the network which follows keeps in a step; 1: it stays as it began. Source: BYOL-A
    (0.99); authors of LAPE's MoCo (0.999).
    """


def chosen_methods(names: str) -> list[MethodName]:
    """Names between commas, or `all` -> methods, each once. Raises UserError for an unknown one."""
    known = get_args(MethodName)
    chosen = [name.strip() for name in names.split(",")] if names != "all" else known
    for name in chosen:
        if name not in known:
            raise UserError(f"--methods {name}: no such method; there are: all, {', '.join(known)}")
    return [name for name in known if name in chosen]


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

RECIPES: dict[MethodName, dict[PresetName, Values]] = {
    "decar-v2": {
        # At the paper's 0.005 LARC (trust 0.001) moves a layer by 5e-6 of its norm a step: nothing in a short run.
        "recommended": {
            "optim.lr": 1.0,
            "cluster.k": "auto",
            "train.batch_size": "auto",
            "bank.view": "training",
        },
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
}
