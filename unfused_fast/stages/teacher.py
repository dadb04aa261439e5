"""How f_sd begins at the weights of its teacher (`distill.init` = teacher). Ours, by docs/stage2.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unfused_fast.config import Config, flatten, from_flat
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.models import build_encoder
from unfused_fast.stages.features import FrozenEncoder, load_encoder
from unfused_fast.training import read_description

SIZES = ("model.encoder", "model.dim", "model.channels", "model.fc_layers")
"""Settings that the tensors of an encoder follow from, with those of `frontend`."""


def start_from(network: torch.nn.Module, config: Config, teacher: FrozenEncoder) -> None:
    """Copies the teacher's weights to the encoder of a config, `distill.init` = teacher. Raises UserError where sizes
    differ.
    """
    assert teacher.network is not None
    refuse_other_encoder(config, teacher.config, teacher.name)
    network.load_state_dict(teacher.network.state_dict())


def adapted(config: Config, teacher: str | Path, resumed: Path | None) -> dict[str, Any]:
    """Settings for stage 2 in place of those of a config, and says so: whole views alone, and for an f_sd that begins
    at its teacher's weights the sizes of the teacher, in place of those by default.

    Args:
        resumed: directory of a run that is resumed; one that was begun has the sizes, even when the teacher is gone.
    """
    taken = dict[str, Any]()
    if config.views.local:
        console.once(f"distill: views.local = {config.views.local} is for pre-training; stage 2 has no local views")
        taken["views.local"] = 0
    if config.distill.init == "teacher":
        begun = None if resumed is None else read_description(resumed)
        of = load_encoder(teacher, torch.device("cpu")).config if begun is None else from_flat(begun["config"])
        taken |= sizes_of(of, config)
    return taken


def sizes_of(teacher: Config, config: Config) -> dict[str, Any]:
    """Sizes of the teacher where those of a config are the default ones. Says so."""
    own, theirs, default = map(flatten, (config, teacher, Config()))
    taken = {field: theirs[field] for field in SIZES[1:] if own[field] == default[field] != theirs[field]}
    if taken:
        console.once(f"distill: f_sd has the sizes of its teacher: {', '.join(f'{n} = {v}' for n, v in taken.items())}")
    return taken


def refuse_other_encoder(config: Config, teacher: Config, name: str) -> None:
    """Raises UserError where f_sd cannot begin at the weights of its teacher, which is called `name`: other sizes, or
    weights that learned from other log-mels.
    """
    with torch.device("meta"):
        own, theirs = (
            {(key, tensor.shape) for key, tensor in build_encoder(of).state_dict().items()} for of in (config, teacher)
        )
    before, wanted = flatten(config), flatten(teacher)
    fields = [field for field in wanted if field.startswith("frontend.")] + [*(SIZES if own != theirs else ())]
    if not {config.data.norm, teacher.data.norm} <= {"dataset", "running"}:  # which bring log-mels to one scale
        fields.append("data.norm")
    if other := [field for field in fields if before[field] != wanted[field]]:
        settings = " ".join(f"--set {field}={wanted[field]}" for field in other)
        raise UserError(
            f"distill.init = teacher, but {name} does not match f_sd in {', '.join(other)}; give f_sd the teacher's "
            f"settings: {settings}; or use --set distill.init=random"
        )
