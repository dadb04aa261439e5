"""Encoders that other programs trained, as model folders: the public checkpoints of BYOL-A, and of DECAR-v2's authors.

byol-a     a state_dict of AudioNTT2020Task6: features.0, 1 / 4, 5 / 8, 9 are convolution and batch normalisation of
           the three blocks, fc.0 and fc.3 the two linear layers. Source: BYOL-A's released weights.
decar-v2   {"state_dict": ..., "epoch", "optimizer"} of a DistributedDataParallel model: the same names behind
           `module.`, with `module.projection_head.*` and `module.prototypes.*` beside them, which are left out.
           Source: authors.

The only file that reads pickles, and only with weights_only=True, which builds tensors and plain containers and runs
nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unfused_fast.config import Config, flatten, with_values
from unfused_fast.errors import UserError, cause, escaped
from unfused_fast.models import AudioNTT
from unfused_fast.training import encoder_digest, write_model_folder

Layout = Literal["byol-a", "decar-v2"]
PREFIXES: Mapping[Layout, str] = {"byol-a": "", "decar-v2": "module."}
LEFT_OUT: Mapping[Layout, tuple[str, ...]] = {"byol-a": (), "decar-v2": ("projection_head.", "prototypes.")}
SHOWN = 8
"""Names that an error lists of each kind."""


def import_checkpoint(
    checkpoint: Path, folder: Path, layout: Layout, mean: float, std: float, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a model folder with the encoder of a foreign checkpoint; its width and depth are read off the tensors.

    Args:
        mean, std: of the log-mels it was trained on, which such checkpoints do not hold.

    Returns:
        Facts for the screen.

    Raises:
        UserError: no checkpoint of tensors there, other names or shapes than the layout's, or `folder` cannot be
            written.
    """
    if not std > 0:
        raise UserError(f"--std {std}: want a number above 0, the standard deviation of the log-mels it was trained on")
    tensors, left_out = encoder_tensors(read_tensors(checkpoint), layout, str(checkpoint))
    channels = tensors["convolutions.0.0.weight"].shape[0]
    dim, inputs = tensors["fully_connected.0.weight"].shape
    if inputs % channels:
        raise UserError(f"{checkpoint}: fc.0 takes {inputs} values of {channels} channels: want a multiple of them")
    given = {"model.channels": channels, "model.dim": dim, "frontend.n_mels": 8 * inputs // channels}
    config = with_values(Config(), given)
    network = AudioNTT(config.frontend.n_mels, dim, channels, config.model.dropout)
    own = network.state_dict()
    wrong = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(f"{checkpoint}: shapes that do not go together: {_listed(wrong)}; is it another architecture?")
    network.load_state_dict(tensors)
    description = {
        "stage": f"imported from {layout}",
        "config": flatten(config),
        "shards": "",
        "log_mel": {"mean": mean, "std": std},
        "inputs": {},
    }
    write_model_folder(folder, network, description, None, overwrite)
    sizes = {"channels": channels, "n_mels": config.frontend.n_mels, "embedding_size": dim}
    return {"out": str(folder), "layout": layout, **sizes, "left_out": left_out, "digest": encoder_digest(network)}


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The state_dict in a file of torch.save, itself or under "state_dict".

    Raises:
        UserError: not readable, not a state_dict, or a pickle that wants more than tensors, of which nothing is run.
    """
    try:
        value = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        sentence = str(error).split("\n")[0][:160]
        raise UserError(
            f"{checkpoint}: it holds more than tensors, or is no file of torch.save ({escaped(sentence)}); nothing in "
            "it was run: save its state_dict alone, with torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{checkpoint}: cannot be read as a file of torch.save ({escaped(cause(error))[:160]}); name another file"
        ) from error
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise UserError(f"{checkpoint}: it holds no state_dict, names with tensors; name another file")
    return {str(name): tensor for name, tensor in value.items()}


def encoder_tensors(found: Mapping[str, Tensor], layout: Layout, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by their names in a layout -> by those of AudioNTT, and the names that are left out.

    Raises:
        UserError: names that lack or do not belong, all told.
    """
    prefix = PREFIXES[layout]
    wanted = {prefix + theirs: ours for ours, theirs in _names().items()}
    others = tuple(prefix + part for part in LEFT_OUT[layout])
    left_out = sorted(name for name in found if others and name.startswith(others))
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # not in files of old torch
    missing = sorted(set(wanted) - set(found) - counters)
    unexpected = sorted(set(found) - set(wanted) - set(left_out))
    if missing or unexpected:
        parts = [
            f"{label} {_listed(names)}" for label, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        known = ", ".join(PREFIXES)
        raise UserError(f"{where}: not of layout {layout}: {'; '.join(parts)}; name its layout ({known}) with --layout")
    tensors = {ours: found[theirs] for theirs, ours in wanted.items() if theirs in found}
    for theirs in counters - set(found):
        tensors[wanted[theirs]] = torch.tensor(0)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, left_out


def _names() -> dict[str, str]:
    """Name in AudioNTT -> name in AudioNTT2020Task6."""
    weights = ("weight", "bias")
    norms = (*weights, "running_mean", "running_var", "num_batches_tracked")
    names = dict[str, str]()
    for block in range(3):
        names |= {f"convolutions.{block}.0.{part}": f"features.{4 * block}.{part}" for part in weights}
        names |= {f"convolutions.{block}.1.{part}": f"features.{4 * block + 1}.{part}" for part in norms}
    return names | {f"fully_connected.{layer}.{part}": f"fc.{layer}.{part}" for layer in (0, 3) for part in weights}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(escaped, names[:SHOWN])) + more
