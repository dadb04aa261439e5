"""Ways to learn from clips without labels, one file each: heads, loss, state between epochs, source.

In: a `Config`, views of clips (B, 1, F, T). Out: a `Method`, which the training loop trains; its encoder is the result.
Read first: method.py, then decar_v2.py. A new method is a file here and a line in METHODS; its name and its values
are in config/methods.py.
"""

from unfused_fast.config import Config, MethodName
from unfused_fast.methods.barlow import Barlow
from unfused_fast.methods.byol import BYOL
from unfused_fast.methods.decar_v1 import DecarV1
from unfused_fast.methods.decar_v2 import DecarV2
from unfused_fast.methods.deep_clustering import DeepClustering
from unfused_fast.methods.delores import DeloresM, DeloresS
from unfused_fast.methods.method import Log, Method, Passes, Trainable
from unfused_fast.methods.moco import MoCo
from unfused_fast.methods.simclr import SimCLR, batch_nt_xent
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
