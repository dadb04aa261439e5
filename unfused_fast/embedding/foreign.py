"""Encoders that other programs trained, as model folders: the public checkpoints of BYOL-A, and of DECAR-v2's authors.

byol-a     a state_dict of AudioNTT2020Task6: features.0, 1 / 4, 5 / 8, 9 are convolution and batch normalisation of
           the three blocks, fc.0 and fc.3 the two linear layers. Source: BYOL-A's released weights.
decar-v2   {"state_dict": ..., "epoch", "optimizer"} of a DistributedDataParallel model: the same names behind
           `module.`, and `module.projection_head.*` and `module.prototypes.*`, which are left out.
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
from unfused_fast.training import encoder_digest, misfitting, write_model_folder

Layout = Literal["byol-a", "decar-v2"]
PREFIXES: Mapping[Layout, str] = {"byol-a": "", "decar-v2": "module."}
LEFT_OUT: Mapping[Layout, tuple[str, ...]] = {
    "byol-a": (),
    "decar-v2": ("module.projection_head.", "module.prototypes."),
}


def import_checkpoint(
    checkpoint: Path, folder: Path, layout: Layout, mean: float, std: float, overwrite: bool = False
) -> dict[str, Any]:
    """Writes a model folder with the encoder of a foreign checkpoint; its width and depth come from the tensors'
    shapes.

    Args:
        mean, std: of the log-mels it was trained on, which such checkpoints do not hold.

    Returns:
        Values to print.

    Raises:
        UserError: no checkpoint of tensors at the path, names or shapes that differ from the layout's, or `folder`
            cannot be written.
    """
    if not std > 0:
        raise UserError(f"--std {std}: want a number above 0, the standard deviation of the log-mels it was trained on")
    given = read_tensors(checkpoint)
    left_out = sorted(name for name in given if name.startswith(LEFT_OUT[layout]))
    tensors = {name: value for name, value in given.items() if name not in left_out}
    config = _config_of(tensors, PREFIXES[layout])
    network = AudioNTT(config.frontend.n_mels, config.model.dim, config.model.channels, config.model.dropout)
    theirs = {ours: PREFIXES[layout] + name for ours, name in _names().items()}
    own = {theirs[ours]: value for ours, value in network.state_dict().items()}
    # files of old torch have no counters; halved weights become float32
    tensors = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | tensors
    tensors = {name: value.to(own[name].dtype) if name in own else value for name, value in tensors.items()}
    if differing := misfitting(own, tensors):
        raise UserError(
            f"{checkpoint}: not of layout {layout}: {escaped(differing)}; layouts for --layout are "
            f"{' and '.join(PREFIXES)}, and a run or a folder that export wrote needs no import"
        )
    network.load_state_dict({ours: tensors[name] for ours, name in theirs.items()})
    description = {
        "stage": f"imported from {layout}",
        "config": flatten(config),
        "shards": "",
        "log_mel": {"mean": mean, "std": std},
        "inputs": {},
    }
    write_model_folder(folder, network, description, None, overwrite)
    sizes = {"channels": config.model.channels, "n_mels": config.frontend.n_mels, "embedding_size": config.model.dim}
    return {"out": str(folder), "layout": layout, **sizes, "left_out": left_out, "digest": encoder_digest(network)}


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The state_dict in a file of torch.save, itself or under "state_dict".

    Raises:
        UserError: not readable, not a state_dict, or a pickle with more than tensors, which is not executed.
    """
    try:
        value = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        sentence = str(error).split("\n")[0][:160]
        raise UserError(
            f"{checkpoint}: it holds more than tensors, or is not a file of torch.save ({escaped(sentence)}); nothing "
            "in it was run: save its state_dict alone, with torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{checkpoint}: cannot be read as a file of torch.save ({escaped(cause(error))[:160]}); name another file"
        ) from error
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise UserError(f"{checkpoint}: it holds no state_dict (names with tensors); name another file")
    return {str(name): tensor for name, tensor in value.items()}


def _config_of(tensors: Mapping[str, Tensor], prefix: str) -> Config:
    """The sizes that the first convolution and the first linear layer have; the default's where they are missing."""
    convolution, linear = (tensors.get(f"{prefix}{name}.weight") for name in ("features.0", "fc.0"))
    if convolution is None or linear is None or convolution.ndim != 4 or linear.ndim != 2:
        return Config()
    channels, (dim, inputs) = convolution.shape[0], linear.shape
    sizes = {"model.channels": channels, "model.dim": dim, "frontend.n_mels": 8 * max(1, inputs // channels)}
    return with_values(Config(), sizes)


def _names() -> dict[str, str]:
    """Name in AudioNTT -> name in AudioNTT2020Task6."""
    weights = ("weight", "bias")
    norms = (*weights, "running_mean", "running_var", "num_batches_tracked")
    names = dict[str, str]()
    for block in range(3):
        names |= {f"convolutions.{block}.0.{part}": f"features.{4 * block}.{part}" for part in weights}
        names |= {f"convolutions.{block}.1.{part}": f"features.{4 * block + 1}.{part}" for part in norms}
    return names | {f"fully_connected.{layer}.{part}": f"fc.{layer}.{part}" for layer in (0, 3) for part in weights}
