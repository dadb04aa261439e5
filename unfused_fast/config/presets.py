"""Presets, `--set`, and the texts of `unfused-fast config`: a config as dotted names and values.

`paper` is the text to the letter, its silences filled as `recommended`; `authors` is what the released code does, its
deviations included, its faults not; `recommended`, the default, is what trained best where we could measure;
`decar-v1` is the predecessor (arXiv 2110.08895), by its paper, and by its authors' code where the paper is silent.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal

from unfused_fast.config.checks import check_together
from unfused_fast.config.fields import Config
from unfused_fast.config.names import PresetName as PresetName
from unfused_fast.config.names import Stage as Stage
from unfused_fast.errors import UserError

# Values that hold for a stage whatever the preset. Source: paper section 4; optimiser of distillation: authors;
# fine-tuning: DECAR section 5 (Adam 0.001, batch 64, at most 50 epochs). AdamW without weight decay is Adam.
STAGES: dict[Stage, dict[str, Any]] = {
    "pretrain": {},
    "distill": {
        "train.epochs": 50,
        "optim.name": "sgd",
        "optim.lr": 0.007,
        "optim.weight_decay": 1e-4,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0,
    },
    "linear": {},
    "finetune": {
        "train.epochs": 50,
        "train.batch_size": 64,
        "optim.name": "adamw",
        "optim.lr": 0.001,
        "optim.weight_decay": 0.0,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0,
    },
}
_AUTHORS: dict[str, Any] = {"data.crop_seconds": 0.98, "data.norm": "running", "train.amp": "fp32"}
_AUTHORS_AUG: dict[str, Any] = {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
# DECAR section 5
_DECAR: dict[str, Any] = {"frontend.kind": "decar1", "model.encoder": "efficientnet_b0", "model.pool": "max"}
# Authors of DECAR: time warp and masks of SpecAugment
_DECAR_AUG: dict[str, Any] = {
    "aug.mixup.ratio": 0.0,
    "aug.rrc.enabled": False,
    "aug.specaug.warp": 5,
    "aug.specaug.freq_masks": 2,
    "aug.specaug.freq_width": 30,
    "aug.specaug.time_masks": 2,
    "aug.specaug.time_width": 40,
}
PRESETS: dict[PresetName, dict[Stage, dict[str, Any]]] = {
    "recommended": {
        # At the paper's 0.005 LARC (trust 0.001) moves a layer by 5e-6 of its norm a step: nothing in a short run.
        "pretrain": {"optim.lr": 1.0, "cluster.k": "auto", "train.batch_size": "auto"},
        "distill": {"train.batch_size": "auto", "pseudo.pca_dim": "auto"},
        "linear": {},
        "finetune": {},
    },
    # UnFuSeD fine-tunes no encoder on labels: DECAR's numbers stay.
    "paper": {"pretrain": {}, "distill": {}, "linear": {"eval.lr_grid": ()}, "finetune": {}},
    "authors": {
        "pretrain": {
            **_AUTHORS,
            **_AUTHORS_AUG,
            "cluster.k": 1024,
            "train.epochs": 200,
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0,
            "model.l2_normalize": False,
            "loss.temperature": 1.0,
        },
        "distill": {
            **_AUTHORS,
            **_AUTHORS_AUG,
            "data.crop_seconds": 12.0,
            "model.fc_layers": 3,
            "train.batch_size": 256,
            "pseudo.feature": "projector",
            "pseudo.seconds": 12.0,
            "pseudo.crop": "start",
            "pseudo.n_init": 1,
        },
        "linear": {
            "eval.epochs": 100,
            "eval.pool": "mean",
            "eval.crop": "random",
            "eval.encoder_mode": "train",
            "eval.standardize": False,
            "eval.lr_grid": (),
            "eval.select": "best_test",
        },
        # Their evaluation code with `--freeze` left out. The pooling is that of a random encoder.
        "finetune": {
            **_AUTHORS_AUG,
            "train.epochs": 100,
            "train.batch_size": 32,
            "train.amp": "fp32",
            "model.pool": "mean",
            "eval.select": "best_test",
        },
    },
    "decar-v1": {
        # Section 5: encoder, max-pooling, g of 512 units, SGD 0.05, batch 64, 100 epochs, patience 10. Table 2: PIC.
        # Authors: g's two layers and dropout, momentum, weight decay, 20 k-means iterations, whole clips (of 10 s,
        # section 4).
        "pretrain": {
            **_DECAR,
            **_DECAR_AUG,
            "model.projector": "dropout",
            "model.proj_hidden": 512,
            "model.proj_dim": 512,
            "model.l2_normalize": False,
            "model.prediction": "linear",
            "cluster.algo": "pic",
            "cluster.iterations": 20,
            "bank.fill": "pass",
            "data.sampler": "uniform_clusters",
            "data.crop_seconds": 10.0,
            "optim.name": "sgd",
            "optim.lr": 0.05,
            "optim.weight_decay": 1e-5,
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0,
            "train.batch_size": 64,
            "train.patience": 10,
        },
        # Ours: DECAR has no second stage; UnFuSeD's, with DECAR's encoder, so that `train all` is a fair comparison.
        "distill": {**_DECAR},
        # Section 5: Adam 0.001, batch 64, 50 epochs.
        "linear": {**_DECAR, "eval.pool": "max", "eval.batch_size": 64, "eval.lr_grid": ()},
        # Crops as in pre-training, since section 5 names none of fine-tuning.
        "finetune": {**_DECAR, **_DECAR_AUG, "data.crop_seconds": 10.0},
    },
}


def preset(name: PresetName, stage: Stage) -> Config:
    """The config of a stage: its defaults, then the preset's values."""
    return with_values(Config(), {**STAGES[stage], **PRESETS[name][stage]})


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field that has not the same value in two configs."""

    field: str
    values: tuple[Any, Any]
    why: str
    """The text under the field, with its sources."""


def differences(first: Config, second: Config) -> list[Difference]:
    """The fields in which two configs differ, in order of definition."""
    other = flatten(second)
    return [
        Difference(name, (value, other[name]), field_texts()[name][1])
        for name, value in flatten(first).items()
        if value != other[name]
    ]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every leaf field, in order of definition."""
    leaves: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        name = f"{prefix}{item.name}"
        leaves.update(flatten(value, f"{name}.") if is_dataclass(value) else {name: value})
    return leaves


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with dotted fields replaced; text is parsed by the field's type. Raises UserError for an unknown
    name, a wrong value, or values that exclude each other.
    """
    for name, value in values.items():
        config = _replaced(config, name.split("."), value, name)
    check_together(config)
    return config


def from_flat(values: dict[str, Any]) -> Config:
    """Inverse of flatten, strict: a missing or unknown field is an error."""
    known = flatten(Config())
    missing, unknown = sorted(set(known) - set(values)), sorted(set(values) - set(known))
    if missing or unknown:
        shown = ", ".join(
            f"{what} fields {names[:4]}{' ...' if len(names) > 4 else ''}"[:200]
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        )
        raise UserError(f"config of another version: {shown}; train again, or use the version that wrote it")
    return with_values(Config(), values)


def _replaced(part: Any, path: list[str], value: Any, name: str) -> Any:
    known = [item.name for item in fields(part)]
    if path[0] not in known:
        raise UserError(
            f"--set {name}: there is no field '{path[0]}'; here are: {', '.join(known)}{_meant(name)} (see: "
            "unfused-fast config)"
        )
    current = getattr(part, path[0])
    if is_dataclass(current):
        if len(path) == 1:
            inner = ", ".join(item.name for item in fields(current))
            raise UserError(f"--set {name}: that is a section; name a field of it: {inner}")
        return replace(part, **{path[0]: _replaced(current, path[1:], value, name)})
    if len(path) > 1:
        raise UserError(f"--set {name}: '{path[0]}' is a value, not a section (see: unfused-fast config)")
    wanted = typing.get_type_hints(type(part))[path[0]]
    return replace(part, **{path[0]: _parse(value, wanted, name)})


def _parse(value: Any, wanted: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _parse(value, option, name)
            except UserError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        items = value.strip("()[] ").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [[]]  # which no field takes
        items = [item for item in items if not (isinstance(item, str) and not item.strip())]
        if arguments[-1] is Ellipsis:
            return tuple(_parse(item, arguments[0], name) for item in items)
        if len(items) == len(arguments):
            return tuple(_parse(item, inner, name) for item, inner in zip(items, arguments, strict=True))
    elif wanted is bool:
        parsed = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
        if parsed is not None:
            return parsed
    else:
        try:
            number = wanted(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and not (wanted is int and isinstance(value, float) and number != value):
            return number
    choices = [str(choice) for choice in arguments] if origin is Literal else []
    near = difflib.get_close_matches(str(value), choices, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    shown = text if len(text := str(value)) <= 80 else f"{text[:77]}..."
    raise UserError(f"--set {name}={shown}: want {describe_type(wanted)}{meant}")


def chosen_fields(names: Sequence[str]) -> set[str]:
    """Dotted names of the fields that `names`, each a field or a section, mean; of all fields where there are none.
    Raises UserError for what is neither.
    """
    known = [*flatten(Config())]
    chosen = set[str](() if names else known)
    for name in names:
        found = {field for field in known if field == name or field.startswith(f"{name}.")}
        if not found:
            sections = ", ".join(dict.fromkeys(field.partition(".")[0] for field in known))
            raise UserError(f"{name}: neither a field nor a section; sections are: {sections}{_meant(name)}")
        chosen |= found
    return chosen


def _meant(name: str) -> str:
    """The nearest name of a field, as a question: one of the same last part, else one that is spelled alike."""
    known = [*flatten(Config())]
    last = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    if "." not in name and same:
        return f"; did you mean {' or '.join(same)}?"
    near = difflib.get_close_matches(name, same, 1, cutoff=0.0) or difflib.get_close_matches(name, known, 1)
    if not near and (leaf := difflib.get_close_matches(last, [other.rpartition(".")[2] for other in known], 1)):
        near = [other for other in known if other.rpartition(".")[2] == leaf[0]]
    return f"; did you mean {near[0]}?" if near else ""


def describe_type(wanted: Any) -> str:
    """A field's type in words: `int or auto`, `one of larc, sgd, adamw`."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(option) for option in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        kind = {int: "whole numbers", float: "numbers", str: "words"}[arguments[0]]
        return f"{'' if arguments[-1] is Ellipsis else f'{len(arguments)} '}{kind} between commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}.get(wanted, str(wanted))


@cache
def field_texts() -> dict[str, tuple[str, str]]:
    """Dotted name -> (type in words, the docstring under the field)."""

    def of(kind: type, prefix: str) -> dict[str, tuple[str, str]]:
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
        texts = {
            node.target.id: following.value.value
            for node, following in itertools.pairwise(body)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        }
        hints, result = typing.get_type_hints(kind), dict[str, tuple[str, str]]()
        for item in dataclasses.fields(kind):
            inner = hints[item.name]
            if is_dataclass(inner):
                result.update(of(typing.cast(type, inner), f"{prefix}{item.name}."))
            else:
                result[prefix + item.name] = (describe_type(inner), " ".join(str(texts.get(item.name, "")).split()))
        return result

    return of(Config, "")
