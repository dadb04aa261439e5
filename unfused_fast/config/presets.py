"""Presets, `--set`, and the texts of `unfused-fast config`: a config as dotted names and values.

`paper` is the text to the letter, its silences filled as `recommended`; `authors` is what the released code does, its
deviations included, its faults not; `recommended`, the default, is what trained best where we could measure;
`decar-v1` is the predecessor (arXiv 2110.08895), by its paper, and by its authors' code where the paper is silent.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from unfused_fast.config.bounds import chosen_names, describe_type, parse
from unfused_fast.config.checks import check_read, check_together
from unfused_fast.config.fields import Config
from unfused_fast.config.methods import (
    AUTHORS,
    CONSTANT,
    DECAR,
    DECAR_AUG,
    NO_MASKS,
    RECIPES,
    MethodName,
    PresetName,
    Values,
)
from unfused_fast.errors import UserError

Stage = Literal["pretrain", "distill", "linear", "finetune"]
BASELINES = ("logmel", "random")
"""Encoders without a run: mean and deviation of each mel bin, and a network as initialised."""
SHIPPED = "base"
"""Name of the encoder that comes with the package, in place of a run's path."""

# Values that hold for a stage whatever the preset. Source: paper section 4; optimiser of distillation: authors;
# fine-tuning: DECAR section 5 (Adam 0.001, batch 64, at most 50 epochs). AdamW without weight decay is Adam.
STAGES: dict[Stage, Values] = {
    "distill": {**CONSTANT, "train.epochs": 50, "optim.name": "sgd", "optim.lr": 0.007, "optim.weight_decay": 1e-4},
    "finetune": {
        **CONSTANT,
        "train.epochs": 50,
        "train.batch_size": 64,
        "optim.name": "adamw",
        "optim.lr": 0.001,
        "optim.weight_decay": 0.0,
    },
}
# Ours, by docs/stage2.md: from the teacher's weights, with SimCLR's contrast (temperature, head, AdamW and views of
# its `recommended`) beside Eq. 1; T and the detached teacher are those of a reimplementation of Be Your Own Teacher
# (github.com/luanyunteng/pytorch-be-your-own-teacher).
RECOMMENDED_DISTILL: Values = {
    **NO_MASKS,
    "distill.init": "teacher",
    "distill.teacher_share": 0.5,
    "distill.contrast": 10.0,
    "distill.kl_temperature": 3.0,
    "distill.detach_teacher": True,
    "loss.temperature": 0.2,
    "model.proj_hidden": 512,
    "optim.name": "adamw",
    "optim.lr": 3e-4,
    "optim.weight_decay": 0.0,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 10,
    "train.epochs": 10,
    "train.batch_size": "auto",
    "pseudo.pca_dim": "auto",
}
PRESETS: dict[PresetName, dict[Stage, Values]] = {
    "recommended": {"distill": RECOMMENDED_DISTILL},
    # UnFuSeD fine-tunes no encoder on labels: DECAR's numbers stay.
    "paper": {"linear": {"eval.lr_grid": ()}},
    "authors": {
        "distill": {
            **AUTHORS,
            **NO_MASKS,
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
            **NO_MASKS,
            "train.epochs": 100,
            "train.batch_size": 32,
            "train.amp": "fp32",
            "model.pool": "mean",
            "eval.select": "best_test",
        },
    },
    "decar-v1": {
        # Ours: DECAR has no second stage; UnFuSeD's, with DECAR's encoder, so that `train all` is a fair comparison.
        "distill": {**DECAR},
        # Section 5: Adam 0.001, batch 64, 50 epochs.
        "linear": {**DECAR, "eval.pool": "max", "eval.batch_size": 64, "eval.lr_grid": ()},
        # Crops as in pre-training, since section 5 names none of fine-tuning.
        "finetune": {**DECAR, **DECAR_AUG, "data.crop_seconds": 10.0},
    },
}


def preset(name: PresetName, stage: Stage, method: MethodName | None = None) -> Config:
    """The config of a stage: its defaults, then the preset's values; of pre-training those of the method, `decar-v2`
    unless given or the preset is `decar-v1`. Raises UserError for a preset that the method does not have.
    """
    if stage != "pretrain":
        return with_values(Config(), {**STAGES.get(stage, {}), **PRESETS[name].get(stage, {})})
    chosen = method or ("decar-v1" if name == "decar-v1" else "decar-v2")
    if name not in RECIPES[chosen]:
        raise UserError(
            f"--preset {name}: method {chosen} does not have it; it has {', '.join(RECIPES[chosen])}; leave --preset "
            "out, or name one of these"
        )
    return with_values(Config(), {"method.name": chosen, **RECIPES[chosen][name]})


def chosen_methods(names: str) -> list[MethodName]:
    """Names between commas, or `all` -> methods, each once. Raises UserError for an unknown one."""
    known = typing.get_args(MethodName)
    chosen = chosen_names("--methods", names, ("all", *known), "moco,byol")
    return [name for name in known if name in chosen or "all" in chosen]


class Difference(NamedTuple):
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


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with dotted fields replaced; text is parsed by the field's type. Raises UserError for an unknown
    name, a wrong value, values that exclude each other, or one that the method does not read.
    """
    config = _laid_over(config, values)
    check_read(config)
    check_together(config)
    return config


def _laid_over(config: Config, values: Mapping[str, Any]) -> Config:
    for name, value in values.items():
        if name not in _kinds():
            inner = [field.removeprefix(f"{name}.") for field in _kinds() if field.startswith(f"{name}.")]
            problem = (
                f"that is a section; name a field of it: {', '.join(inner)}" if inner else "there is no such field"
            )
            raise UserError(f"--set {name}: {problem}{'' if inner else _meant(name)} (see: unfused-fast config)")
        config = _replaced(config, name.split("."), parse(value, _kinds()[name], name))
    return config


def from_flat(values: Mapping[str, Any]) -> Config:
    """Inverse of flatten. A missing field takes its default, which has to mean what versions without that field did, so
    that their runs can be read. Raises UserError for an unknown one. A field that the method does not read
    may have any value.
    """
    if unknown := sorted(set(values) - set(_kinds())):
        named = ", ".join(unknown[:4])[:200] + (", ..." if len(unknown) > 4 else "")
        raise UserError(
            f"config of another version: unknown fields {named}; train again, or use the version that wrote it"
        )
    config = _laid_over(Config(), values)
    check_together(config)
    return config


@cache
def _kinds() -> dict[str, Any]:
    """Dotted name -> type and bound of every field."""
    return {
        f"{prefix}{name}": kind
        for prefix, section in _sections()
        for name, kind in typing.get_type_hints(section, include_extras=True).items()
        if not is_dataclass(kind)
    }


def _sections(section: type = Config, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(prefix of its fields' dotted names, dataclass) of every section, in order of definition."""
    yield prefix, section
    for name, kind in typing.get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _sections(typing.cast(type, kind), f"{prefix}{name}.")


def _replaced(part: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return replace(part, **{first: _replaced(getattr(part, first), rest, value) if rest else value})


def chosen_fields(names: Sequence[str]) -> set[str]:
    """Dotted names of the fields that `names`, each a field or a section, mean; of all fields where there are none.
    Raises UserError for what is neither.
    """
    chosen = set[str](() if names else _kinds())
    for name in names:
        found = {field for field in _kinds() if f"{field}.".startswith(f"{name}.")}
        if not found:
            sections = ", ".join(item.name for item in fields(Config))
            raise UserError(f"{name}: neither a field nor a section; sections are: {sections}{_meant(name)}")
        chosen |= found
    return chosen


def _meant(name: str) -> str:
    """The nearest names of fields, as a question: of the same last part, else spelled alike."""
    same = [field for field in _kinds() if field.rpartition(".")[2] == name.rpartition(".")[2]]
    near = difflib.get_close_matches(name, same or _kinds(), 2 if same else 1, cutoff=0.0 if same else 0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


@cache
def field_texts() -> dict[str, tuple[str, str]]:
    """Dotted name -> (type in words, the docstring under the field)."""
    texts = dict[str, str]()
    for prefix, section in _sections():
        body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(section)).body[0]).body
        for node, following in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
                texts[prefix + ast.unparse(node.target)] = " ".join(str(ast.literal_eval(following.value)).split())
    return {name: (describe_type(kind), texts[name]) for name, kind in _kinds().items()}
