"""Every method with settings for tiny runs on the CPU, some in a second way."""

from __future__ import annotations

from typing import Any

import torch

from unfused_fast.config import MethodName, preset, with_values
from unfused_fast.distributed import ALONE
from unfused_fast.methods import METHODS

CPU = torch.device("cpu")
COLA = "method.similarity=bilinear views.same_crop=false model.projector=layernorm model.l2_normalize=false"
KINDS: dict[str, tuple[MethodName, str]] = {
    "simclr": ("simclr", "optim.lr=0.01"),
    "simclr, as COLA": ("simclr", f"optim.lr=0.01 {COLA}"),
    "moco": ("moco", "optim.lr=0.01 method.queue=40 method.ema=0.9"),
    "byol": ("byol", "optim.lr=0.01 method.ema=0.9 aug.noise=0.1"),
    "barlow": ("barlow", "optim.lr=0.001"),
    "delores-s": ("delores-s", "optim.lr=0.001 method.barlow_weight=0.1"),
    "delores-m": ("delores-m", "optim.lr=0.01 method.queue=40 method.ema=0.9 views.local=1 views.local_seconds=0.5"),
    "slicer": ("slicer", "optim.lr=0.1 cluster.k=12 method.queue=40 method.ema=0.9"),
    "swav": ("swav", "optim.lr=0.001 method.queue=40"),
    "swav, local views": (
        "swav",
        "optim.lr=0.001 method.queue=40 views.local=2 views.local_seconds=0.5 views.same_crop=false",
    ),
}
"""Name -> method and settings. The DECARs have tests of their own."""
DECARS: dict[str, tuple[MethodName, str]] = {
    "decar-v2": ("decar-v2", "cluster.k=4 train.batch_size=16 bank.view=separate"),
    "decar-v1": ("decar-v1", "cluster.k=4 cluster.pca_dim=8 model.encoder=audiontt data.crop_seconds=0.95"),
}
PARTS = "train.accumulate=2"
"""A step in two parts."""


def sets(values: str) -> list[str]:
    return [word for value in values.split() for word in ("--set", value)]


def flags(kind: str) -> list[str]:
    method, values = {**KINDS, **DECARS}[kind]
    return ["--method", method, *sets(values)]


SMALL = "model.channels=4 model.dim=32 model.proj_hidden=24 model.proj_dim=8 train.batch_size=16"


def small(name: MethodName, **values: Any) -> Any:
    """A method for 60 clips, with the weights of seed 0, whose networks run as they are; the batch has 16 clips."""
    torch.manual_seed(0)
    given = {**dict(item.split("=") for item in SMALL.split()), **values}
    method: Any = METHODS[name](with_values(preset("recommended", "pretrain", name), given), 60, 0, CPU, ALONE)
    method.run = lambda *views, network=None: (method.network if network is None else network)(*views)
    ALONE.batch([16])
    return method.train()
