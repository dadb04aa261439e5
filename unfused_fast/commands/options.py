"""From the flags of a command: its settings, and how it runs, alone or as one of several processes. Imports nothing
heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from unfused_fast.config import BASELINES, READ_BY, READ_WITH, MethodName, PresetName, Stage
from unfused_fast.errors import UserError
from unfused_fast.launch import place_of

OF_HEADS = "eval.", "model.", "frontend.", "train.seed", "data.store", "data.norm", "data.crop_seconds"
"""What stage 3 reads; of network, front end, norm and crop for a baseline only."""

if TYPE_CHECKING:
    from unfused_fast.config import Config
    from unfused_fast.training import Options


def refuse_several(alone: bool = True) -> None:
    """Raises UserError for the first of several processes of torchrun or srun, of a command that runs `alone`; the
    others end without a word.
    """
    place = place_of(os.environ) if alone else None
    if place is not None and place.rank:
        raise typer.Exit(1)
    if place is not None:
        raise UserError(
            f"this command runs as one process, but was started as one of {place.world_size}, which would all write "
            "the same files; start it once, without torchrun, or with srun --ntasks=1"
        )


def run_options(
    device: str,
    compile_: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    save_every: str | None = None,
    resume_anyway: bool = False,
    timeout: float | None = None,
    skip_bad: int = 0,
    compile_mode: str = "default",
    log_to: str = "tensorboard",
) -> Options:
    """How a stage runs, from the flags; with a `timeout` together with the other processes, where there are some.

    Raises UserError for a device that is not there, or flags that exclude each other; and without a `timeout` for one
    of several processes, each of which would do all of the work and write the same files.
    """
    refuse_several(timeout is None)
    from unfused_fast.training import Options, join, parse_save_every, parse_trackers, resolve_device

    if (resume or resume_anyway) and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    place = None if timeout is None else place_of(os.environ)
    chosen = resolve_device(device if place is None else place.device(device))
    return Options(
        chosen,
        compile_,
        compile_mode,
        resume=resume or resume_anyway,
        resume_anyway=resume_anyway,
        overwrite=overwrite,
        save_every=parse_save_every(save_every)[0],
        profile=profile,
        ranks=join(place, chosen, timeout or 0.0),
        skip_bad=skip_bad,
        log_to=parse_trackers(log_to),
    )


def pairs(
    settings: list[str] | None,
    flag: str = "--set",
    wanted: str = "section.field=value, for example --set cluster.k=256 (see: unfused-fast config)",
) -> dict[str, str]:
    """`--set a.b=c` flags as a dictionary. Raises UserError for one without `=`, and for the name of a method."""
    values = {}
    for item in settings or []:
        name, sign, value = item.partition("=")
        if not sign:
            raise UserError(f"{flag} {item}: want {wanted}")
        values[name.strip()] = value.strip()
    if (method := values.get("method.name")) is not None:
        raise UserError(
            f"{flag} method.name={method}: a method has settings of its own; use --method {method}, as of train "
            "pretrain, or to compare several: unfused-fast compare"
        )
    return values


def read_by(
    settings: list[str] | None, method: MethodName, among: Iterable[MethodName], in_file: Iterable[str] = ()
) -> list[str]:
    """The `--set` flags without each that others `among` these methods read and this one does not, and would refuse.
    `in_file` are the fields that --config sets.
    """
    values = pairs(settings)
    given = {*values, *in_file}
    return [f"{name}={value}" for name, value in values.items() if _kept(name, method, among, given)]


def _kept(name: str, method: str, among: Iterable[str], given: Iterable[str]) -> bool:
    """Whether this method reads a field, or none of `among` does. Ours: what `decar-v2` reads only beside another field
    is its own where that one is `given` too, or it alone is among them.
    """
    readers, others = READ_BY.get(name, (method,)), {*among}
    own = method in readers
    if name in READ_WITH and method == "decar-v2":
        beside = READ_WITH[name][0] in given or not ({*readers} & others) - {method}
        own = method in others and beside
    return own or not {*readers} & others


def stage_config(
    stage: Stage,
    preset_name: PresetName,
    settings: list[str] | None,
    epochs: int | None,
    seed: int | None,
    method: MethodName | None = None,
    file: tuple[Path, bool] | None = None,
    **flags: Any,
) -> Config:
    """Preset, for pre-training of a method, then the file of --config, then fields that flags set, where they are not
    None, then `--set`, which wins; after pre-training without those that are the method's own.

    Args:
        file: path, and whether the command has several stages or methods: then the file's stage may be another, and
            what the method does not read is left out.

    Raises:
        UserError: what `pairs`, `read_settings`, `preset` or `with_values` refuse, a file of another stage or method.
    """
    from unfused_fast.config import preset, read_settings, with_values

    flags |= {"train.seed": seed, "eval.epochs" if stage == "linear" else "train.epochs": epochs}
    given = {name: value for name, value in flags.items() if value is not None}
    found, several = (None, False) if file is None else (read_settings(file[0]), file[1])
    if found is not None and found.stage not in (stage, None):
        if not several:
            raise UserError(
                f"--config {found.path}: settings of stage {found.stage}, but this is stage {stage}; give a file of "
                f"this stage (unfused-fast config --stage {stage} --yaml)"
            )
        found = None
    if found is not None and found.method is not None and stage == "pretrain":
        if method not in (found.method, None):
            raise UserError(
                f"--config {found.path}: settings of method {found.method}, but this is {method}; leave method.name "
                "out of the file, or take the same"
            )
        method = found.method
    trained: MethodName = method or ("decar-v1" if preset_name == "decar-v1" else "decar-v2")
    if stage != "pretrain":
        settings = read_by(settings, "decar-v2", [trained])  # by whose name the other stages go
    config = preset(preset_name, stage, method)
    if found is not None:
        own, others = config.method.name, get_args(MethodName) if stage == "pretrain" else [found.method or trained]
        values = {
            name: value for name, value in found.values.items() if not several or _kept(name, own, others, found.values)
        }
        try:
            config = with_values(config, values)
        except UserError as error:
            raise UserError(f"--config {found.path}: {str(error).removeprefix('--set ')}") from error
    return with_values(config, {**given, **pairs(settings)})


def refuse_unread(names: list[str], config: Config, encoders: Iterable[str], read: str = "") -> None:
    """Raises UserError for a given field of network or front end, among `names`, that differs from a trained encoder's,
    which brings its own; `read` is one that is read.
    """
    from unfused_fast.config import flatten
    from unfused_fast.training import encoder_place, read_description

    given = flatten(config)
    named = [name for name in names if name.startswith(("model.", "frontend.")) and name != read]
    for encoder in encoders:
        recorded = None if encoder in BASELINES or not named else read_description(encoder_place(encoder))
        own = given if recorded is None else {**given, **recorded["config"]}
        if other := [name for name in named if own[name] != given[name]]:
            raise UserError(
                f"--set {other[0]}={given[other[0]]}: {encoder} has its own network and front end, with "
                f"{other[0]} = {str(own[other[0]])[:40]}; leave the setting out, or train an encoder with it"
            )


def refuse_unread_by_heads(settings: list[str] | None) -> None:
    """Raises UserError for the first `--set` flag of a field that only the stages before the third one read."""
    from unfused_fast.config import Config, flatten

    for name in pairs(settings):
        if not name.startswith(OF_HEADS):
            meant = f"eval.{name.rpartition('.')[2]}"
            advice = f"use --set {meant}" if meant in flatten(Config()) else "leave it out"
            raise UserError(f"--set {name}: linear heads do not read it; {advice}")
