"""Values of different fields that exclude each other, refused before a run starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Literal, get_args

from unfused_fast.config.audio import DECAR_WINDOW
from unfused_fast.config.fields import BankConfig, ClusterConfig, Config
from unfused_fast.config.methods import MethodName
from unfused_fast.errors import UserError

PIC = ("pic_neighbours", "pic_sigma", "pic_alpha", "pic_iterations")
UNREAD = {
    "spherical": ("pca_dim", "whiten", *PIC),
    "pca_kmeans": ("init", "empty", "backend", *PIC),
    "pic": ("init", "empty", "backend", "n_init"),
}
"""Fields of `cluster` that an algorithm does not read and that say how to cluster. Ours: one that is set and then not
read would be taken for one that was tried. `k` and `iterations`, which presets set, are left out.
"""

MUON_LR = 0.1
"""Largest rate of Muon. Ours: a step moves a weight by about 0.2 of the rate, and weights are of about 0.02 to 0.1. The
presets' rates of LARC, up to 1, would destroy a network in its first step.
"""


Layer = Literal["block1", "block2", "block3", "encoder"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""Of an encoder, whose outputs can be features: its three blocks' maps, and its end."""


def feature_layers(features: str, name: str) -> tuple[Layer, ...]:
    """The layers that `features` names, in order: one, several with + between, or `all`. Raises UserError for others;
    `name` is the setting's or the flag's.
    """
    parts = LAYERS if features == "all" else features.split("+")
    found = tuple(layer for layer in LAYERS if layer in parts)
    if len(found) < len(parts):
        raise UserError(
            f"{name} = {features}: want layers with + between, each once, such as block3+encoder, or all; there are "
            f"{', '.join(LAYERS)}{', and projector alone' if name in ('eval.features', 'pseudo.feature') else ''}"
        )
    return found


QUEUE: tuple[MethodName, ...] = ("moco", "delores-m", "slicer")
BARLOW: tuple[MethodName, ...] = ("barlow", "delores-s", "delores-m")
LEAST_FRAMES = {"audiontt": 8, "efficientnet_b0": 32}
"""Of a local view: the encoders halve time three times and five; of a crop or window AudioNTT's."""
CLUSTERING: tuple[MethodName, ...] = ("decar-v2", "decar-v1")
LOCAL: tuple[MethodName, ...] = ("decar-v2", *QUEUE, *BARLOW[:2], "swav", "byol")
READ_BY: dict[str, tuple[MethodName, ...]] = {
    "prototypes.freeze": ("decar-v2",),
    "method.queue": (*QUEUE, "swav"),
    "method.ema": ("decar-v2", *QUEUE, "byol"),
    "method.similarity": ("simclr",),
    "loss.temperature": ("decar-v2", "simclr", *QUEUE, "swav"),
    **dict.fromkeys(("loss.instance", "loss.instance_weight", "loss.instance_temperature"), ("decar-v2",)),
    "aug.mixup.partner": ("slicer",),
    "optim.head_lr": (*CLUSTERING, "swav"),
    "optim.head_weight_decay": CLUSTERING,
    **dict.fromkeys(("views.local", "views.local_seconds"), LOCAL),
    "method.barlow_lambda": ("decar-v2", *BARLOW),
    "method.barlow_weight": BARLOW,
    **dict.fromkeys(("data.sampler", "train.patience"), CLUSTERING),
    **{f"bank.{field.name}": CLUSTERING for field in fields(BankConfig)},
    "bank.encoder": ("decar-v2",),
    **{f"cluster.{field.name}": CLUSTERING for field in fields(ClusterConfig)},
    **{f"cluster.{name}": ("decar-v1",) for name in ("pca_dim", "whiten", *PIC)},
    "cluster.k": (*CLUSTERING, "slicer", "swav"),
}
"""Fields that only some methods read, for the same reason."""
READ_WITH: dict[str, tuple[str, tuple[str | bool, ...]]] = {
    "loss.instance_weight": ("loss.instance", ("simclr", "barlow")),
    "loss.instance_temperature": ("loss.instance", ("simclr",)),
    "method.barlow_lambda": ("loss.instance", ("barlow",)),
    "method.ema": ("bank.encoder", ("follower",)),
    **dict.fromkeys(("optim.head_lr", "optim.head_weight_decay"), ("prototypes.freeze", (False,))),
}
"""Fields that `decar-v2` reads only where another field has one of these values."""


def check_together(config: Config) -> None:
    """Raises UserError for values that exclude each other; presets.with_values calls it when all are set."""
    for sentence in _refusals(config):
        raise UserError(sentence)


def check_read(config: Config) -> None:
    """Raises UserError for a field that the method does not read and that is not at its default, and for a single
    cluster; for settings that are given now, not for those of a finished run, which earlier versions may have taken.
    """

    def refuse(name: str, who: str, instead: str) -> None:
        value, default = attrgetter(name)(config), attrgetter(name)(Config())
        if value != default:
            raise UserError(f"{name} = {value}, but {who} does not read it; leave it at {default}, or use {instead}")

    method = config.method.name
    for name, readers in READ_BY.items():
        if method not in readers:
            refuse(name, f"method {method}", f"--method {_either(readers)}")
    for name, (other, values) in READ_WITH.items() if method == "decar-v2" else ():
        if (found := attrgetter(other)(config)) not in values:
            refuse(name, f"method {method} with {other} = {found}", f"{other}={_either(values)}")
    for name in UNREAD[config.cluster.algo]:
        algos = [algo for algo, unread in UNREAD.items() if name not in unread]
        refuse(f"cluster.{name}", f"cluster.algo = {config.cluster.algo}", f"cluster.algo={_either(algos)}")
    if config.whole_views + config.views.local == 1:
        passes, others = config.bank.fill == "pass", ", loss.instance=simclr or barlow, or views.local=1 or more"
        refuse(
            "views.same_crop",
            f"a step with one view of a clip (bank.{'fill = pass' if passes else 'view = training'})",
            f"{'bank.fill=training with ' if passes else ''}bank.view=separate{others if method == 'decar-v2' else ''}",
        )
    for name, numbers in ("cluster.k", config.cluster.heads), ("pseudo.k", (config.pseudo.k,)):
        if 1 in numbers:
            raise UserError(f"{name} = 1: a single cluster teaches nothing; want at least 2, or auto")


def _either(words: Sequence[object]) -> str:
    *others, last = map(str, words)
    return f"{', '.join(others)}{' or ' if others else ''}{last}"


def _refusals(config: Config) -> Iterator[str]:
    frontend, rrc, pseudo, cluster = config.frontend, config.aug.rrc, config.pseudo, config.cluster
    if frontend.n_fft < frontend.window_samples:
        yield f"frontend.n_fft = {frontend.n_fft}: frontend.kind = decar1 wants at least its window of {DECAR_WINDOW}"
    if not frontend.fmin_hz < frontend.fmax_hz <= frontend.sample_rate_hz / 2:
        yield f"frontend.fmin_hz = {frontend.fmin_hz}, fmax_hz = {frontend.fmax_hz}: want fmin < fmax <= 8000"
    for name, (low, high) in (("freq_scale", rrc.freq_scale), ("time_scale", rrc.time_scale)):
        if low > high:
            yield f"aug.rrc.{name} = {low},{high}: want the smaller number first"
    if "train" not in pseudo.splits or len(set(pseudo.splits)) < len(pseudo.splits):
        yield f"pseudo.splits = {','.join(pseudo.splits)}: want train, and optionally others, each once"
    if pseudo.crop != "centre" and pseudo.seconds == 0:
        yield f"pseudo.crop = {pseudo.crop}, but pseudo.seconds = 0 takes whole clips; set pseudo.seconds too"
    for name, features in (("pseudo.feature", pseudo.feature), ("eval.features", config.eval.features)):
        if features != "projector":
            feature_layers(features, name)
    if config.eval.encoder != "full" and config.eval.features != "encoder":
        yield (
            f"eval.features = {config.eval.features}, but eval.encoder = {config.eval.encoder} means block3; leave one "
            "of them out"
        )
    if config.eval.crop == "full" and config.eval.seconds != "auto":
        yield f"eval.seconds = {config.eval.seconds}, but eval.crop = full takes whole clips; use centre or random"
    if config.data.sampler != "every_clip" and config.bank.fill != "pass":
        yield (
            f"data.sampler = {config.data.sampler} leaves clips out of an epoch, which would be missing in the bank; "
            "use it with --set bank.fill=pass"
        )
    if config.optim.name == "muon" and config.optim.lr > MUON_LR:
        yield (
            f"optim.lr = {config.optim.lr:g}, but optim.name = muon moves each weight by about a fifth of it a step; "
            f"want at most {MUON_LR}, such as 0.001"
        )
    for name, seconds in (
        ("data.crop_seconds", config.data.crop_seconds),
        ("eval.seconds", config.eval.seconds),
        ("pseudo.seconds", pseudo.seconds),
    ):
        if seconds not in ("auto", 0) and config.frames_of(float(seconds)) < LEAST_FRAMES["audiontt"]:
            shortest = (LEAST_FRAMES["audiontt"] - 1) * frontend.hop_samples / frontend.sample_rate_hz
            yield f"{name} = {seconds}: too short for an encoder; want at least {shortest:g}"
    least = LEAST_FRAMES[config.model.encoder]
    if config.views.local and not least <= config.local_frames < config.crop_frames:
        yield (
            f"views.local_seconds = {config.views.local_seconds}, {config.local_frames} frames: want less than "
            f"data.crop_seconds = {config.data.crop_seconds}, and at least {least} frames"
        )
    if not cluster.heads:
        yield "cluster.k is empty: want at least 1 number, or auto"
    if config.method.name == "swav" and len(cluster.heads) > 1:
        yield (
            f"cluster.k = {','.join(map(str, cluster.heads))}, but method swav has one set of prototypes; give one "
            "number, or use --method decar-v2"
        )
    if config.method.name == "slicer" and not isinstance(cluster.k, int):
        yield f"cluster.k = {cluster.k}, but the cluster head of method slicer has a fixed width; give one number"
    if cluster.algo == "pic" and len(cluster.heads) > 1:
        yield (
            f"cluster.k = {','.join(map(str, cluster.heads))}, but cluster.algo = pic finds the number of clusters "
            "itself; give one number, or use cluster.algo=spherical"
        )
    if config.method.name == "decar-v1" and cluster.init == "warm":
        yield "cluster.init = warm: method decar-v1 has no prototypes; use cluster.init=random or kmeans++"
    if config.method.name == "decar-v2" and cluster.algo != "spherical":
        yield f"cluster.algo = {cluster.algo} has no prototypes; use it with --method decar-v1"
