"""What search.py may change in a method's recipe, as data: a new axis is an entry of AXES and its name in SPACES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfused_fast.config import Config, MethodName, flatten

Values = Mapping[str, Any]
"""Dotted name of a field -> its value."""
Choices = Mapping[str, Values]
"""Label -> values. One of them is what each recipe has that is searched with the axis."""


@dataclass(frozen=True)
class Factor:
    """A number times what the recipe and the choices give it, evenly over its logarithm."""

    field: str
    low: float
    high: float


Axis = Choices | Factor


def _choices(field: str, *values: Any) -> Choices:
    texts = (" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
    return {text: {field: value} for text, value in zip(texts, values, strict=True)}


AXES: dict[str, Axis] = {
    "crops": _choices("views.same_crop", True, False),
    # different crops want a view of their own for the bank
    "crops and bank": {
        "same crop, training view": {"views.same_crop": True, "bank.view": "training"},
        "same crop, separate view": {"views.same_crop": True, "bank.view": "separate"},
        "different crops, separate view": {"views.same_crop": False, "bank.view": "separate"},
        "a pass": {"views.same_crop": True, "bank.view": "separate", "bank.fill": "pass"},
    },
    "local crops": _choices("views.local", 0, 2, 4),
    "heads and K": _choices("cluster.k", "auto", 64, 128, 256, 512, (256, 256, 256), (64, 256, 1024)),
    "K": _choices("cluster.k", "auto", 64, 128, 256, 512),
    "clusters": _choices("cluster.k", 64, 128, 256),
    "mixup": _choices("aug.mixup.ratio", 0.0, 0.2, 0.4),
    "fader": _choices("aug.fader", 0.0, 1.0),
    "noise": _choices("aug.noise", 0.0, 0.2),
    "SpecAugment": {
        "on": {"aug.specaug.freq_masks": 1, "aug.specaug.time_masks": 1},
        "off": {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0},
    },
    "resize crop": {
        "pitch and time": {"aug.rrc.enabled": True, "aug.rrc.freq_scale": (0.6, 1.5)},
        "time": {"aug.rrc.enabled": True, "aug.rrc.freq_scale": (1.0, 1.0)},
        "off": {"aug.rrc.enabled": False},
    },
    "crop length": _choices("data.crop_seconds", 0.95, 2.0, 4.0),
    "normalisation": _choices("data.norm", "dataset", "running", "wave_l2"),
    "projector": _choices("model.projector", "batchnorm", "batchnorm3", "mlp"),
    # where weights of one size move about as far a step: LARC at 1 by 0.001 of a layer's norm
    "optimiser": {
        "larc": {"optim.name": "larc", "optim.lr": 1.0},
        "adamw": {"optim.name": "adamw", "optim.lr": 3e-4},
        "muon": {"optim.name": "muon", "optim.lr": 0.01},
    },
    "rate": Factor("optim.lr", 0.2, 5.0),
    "warm-up": _choices("optim.warmup_epochs", 10, 0),
    "weight decay": _choices("optim.weight_decay", 0.0, 1e-6, 1e-4, 1e-2),
    "temperature": Factor("loss.temperature", 0.5, 3.0),
    "batch": _choices("train.batch_size", "auto", 64, 256, 512),
    "moving average": _choices("method.ema", 0.99, 0.996, 0.999),
    "epochs": Factor("train.epochs", 1.0, 4.0),
}
_VIEWS = ("mixup", "fader", "noise", "SpecAugment", "resize crop", "crop length", "normalisation")
_LEARNING = ("projector", "optimiser", "rate", "warm-up", "weight decay", "batch")
_ALL = (*_VIEWS, *_LEARNING)
COSTLY = ("epochs",)
"""Axes that are searched only where they are named: what they win is bought with clips seen."""
SPACES: dict[MethodName, tuple[str, ...]] = {
    "decar-v2": ("crops and bank", "heads and K", "temperature", *_ALL),
    "simclr": ("crops", "temperature", *_ALL),
    "moco": ("crops", "local crops", "moving average", "temperature", *_ALL),
    "byol": ("crops", "local crops", "moving average", *_ALL),
    "barlow": ("crops", "local crops", *_ALL),
    "delores-s": ("crops", "local crops", *_ALL),
    "delores-m": ("crops", "local crops", "moving average", "temperature", *_ALL),
    "swav": ("crops", "local crops", "K", "temperature", *_ALL),
    "slicer": ("crops", "local crops", "clusters", "moving average", "temperature", *_ALL),
}
"""Method -> names of axes. Ours: `decar-v1` is left out, whose recipe is of another encoder and of clips of 10 s."""


def usual(axis: Axis, recipe: Config) -> str | float:
    """What a recipe has on an axis: the label, or the factor 1."""
    if isinstance(axis, Factor):
        return 1.0
    values = flatten(recipe)
    return next(label for label, of in axis.items() if all(values[name] == value for name, value in of.items()))


def values_of(chosen: Mapping[str, Any], recipe: Config) -> dict[str, Any]:
    """Axis -> label or factor -> the values laid over the recipe. Fields that stay as they are, are left out."""
    before = flatten(recipe)
    found = dict(before)
    for name, picked in chosen.items():
        if not isinstance(axis := AXES[name], Factor):
            found |= axis[picked]
    for name, picked in chosen.items():
        if isinstance(axis := AXES[name], Factor):
            number = found[axis.field] * picked
            found[axis.field] = round(number) if isinstance(found[axis.field], int) else float(f"{number:.3g}")
    return {name: value for name, value in found.items() if value != before[name]}
