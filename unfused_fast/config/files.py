"""Settings in a file: YAML as `unfused-fast config --yaml` prints it, or the config.json of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unfused_fast.config.bounds import parse
from unfused_fast.config.methods import MethodName
from unfused_fast.config.presets import Stage, chosen_fields
from unfused_fast.errors import UserError, cause

DEEPEST = 2
"""Dots in the name of a field: `aug.mixup.ratio`."""


class FileSettings(NamedTuple):
    """What a file sets."""

    path: Path
    stage: Stage | None
    """The stage that it is of; None: of each."""
    method: MethodName | None
    """`method.name`."""
    values: dict[str, Any]
    """Dotted name -> value, of the other fields."""


def read_settings(path: Path) -> FileSettings:
    """Reads a file of settings: sections with their fields, or dotted names.

    Raises UserError: it cannot be read, is no YAML, or has names that are no fields.
    """
    from yaml import YAMLError, safe_load

    do = "give a file as `unfused-fast config --yaml` prints it, or the config.json of a run"
    try:
        found = safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({cause(error)}); {do}") from error
    except (YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"--config {path}{where}: not readable as YAML; {do}") from error
    stage = found.pop("stage", None) if isinstance(found, dict) else None
    if isinstance(found, dict) and isinstance(found.get("config"), dict):  # of a run
        found = found["config"]
    if not isinstance(found, dict) or not found:
        raise UserError(f"--config {path}: no settings in it; {do}")
    if stage not in (None, "pretrain", "distill", "linear", "finetune"):
        raise UserError(f"--config {path}: stage {stage}, but a stage is pretrain, distill, linear or finetune")
    values: dict[str, Any] = {}
    for name, value in _leaves(found):
        if name in values:
            raise UserError(f"--config {path}: {name} is given twice; leave one out")
        values[name] = value
    try:
        if sections := [name for name in values if chosen_fields([name]) != {name}]:
            raise UserError(f"{sections[0]}: that is a section; indent its fields below it")
        method = values.pop("method.name", None)
        if method is not None:
            method = parse(method, MethodName, "method.name")
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    return FileSettings(path, stage, method, values)


def _leaves(found: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and what is below them; no deeper than a field, since YAML can have a section within itself."""
    for name, value in found.items():
        if isinstance(value, dict) and value and prefix.count(".") < DEEPEST:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_yaml(values: Mapping[str, Any], stage: Stage) -> str:
    """Dotted name -> value as YAML, for read_settings: the stage, then each section with its fields."""
    from yaml import safe_dump

    sections: dict[str, Any] = {"stage": stage}
    for name, value in values.items():
        *outer, last = name.split(".")
        section = sections
        for one in outer:
            section = section.setdefault(one, {})
        section[last] = list(value) if isinstance(value, tuple) else value
    text: str = safe_dump(sections, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return text
