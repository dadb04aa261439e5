"""The methods by name, and the one that a config selects."""

from __future__ import annotations

from unfused_fast.config import Config, MethodName
from unfused_fast.methods.barlow import Barlow
from unfused_fast.methods.byol import BYOL
from unfused_fast.methods.decar_v1 import DecarV1
from unfused_fast.methods.decar_v2 import DecarV2
from unfused_fast.methods.delores import DeloresM, DeloresS
from unfused_fast.methods.method import Method
from unfused_fast.methods.moco import MoCo
from unfused_fast.methods.simclr import SimCLR
from unfused_fast.methods.slicer import Slicer
from unfused_fast.methods.swav import SwAV

METHODS: dict[MethodName, type[Method]] = {
    "decar-v2": DecarV2,
    "decar-v1": DecarV1,
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "barlow": Barlow,
    "delores-s": DeloresS,
    "delores-m": DeloresM,
    "swav": SwAV,
    "slicer": Slicer,
}


def method_class(config: Config) -> type[Method]:
    """By `method.name`."""
    return METHODS[config.method.name]
