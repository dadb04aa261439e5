"""A model folder: one encoder without its run, to hand on.

FOLDER/config.json         as of a run: stage, config, digest of the training shards, log-mel statistics; no inputs
FOLDER/model.safetensors   tensors of the encoder, named as in model.py, in float32
FOLDER/README.md           model card, where `export --hub` wrote it
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unfused_fast.checkpoint import load_network, write_json
from unfused_fast.config import Config
from unfused_fast.efficientnet import EfficientNetB0
from unfused_fast.errors import UserError
from unfused_fast.model import AudioNTT, build_encoder
from unfused_fast.settings import from_flat
from unfused_fast.shards.building import to_disk
from unfused_fast.shards.shard_files import replace_file

WEIGHTS = "model.safetensors"


def encoder_digest(network: nn.Module) -> str:
    """sha256 (hex) of an encoder's tensors, by name: the same for a run and the folder exported from it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_model_folder(
    folder: Path, network: nn.Module, description: Mapping[str, Any], card: str | None = None, overwrite: bool = False
) -> None:
    """Writes a model folder, which is there when it is complete and not before.

    Args:
        description: what config.json holds: stage, config, shards, log_mel, inputs.
        card: text of README.md.
        overwrite: replace a model folder.

    Raises:
        UserError: something is at `folder`, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder}: it exists and is not a model folder; name another place")
        if not overwrite:
            raise UserError(f"{folder}: a model folder is there; name another place, or replace it with --overwrite")
    partial = folder.with_name(folder.name + ".partial")
    tensors: dict[str, Tensor] = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / WEIGHTS, {"format": "pt"})
        to_disk(partial / WEIGHTS)
        write_json(partial / "config.json", dict(description))
        if card is not None:
            replace_file(partial / "README.md", card.encode())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        to_disk(folder.absolute().parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written ({error}); free space, or name another place") from error


def read_model_folder(folder: Path, recorded: Mapping[str, Any]) -> tuple[Config, AudioNTT | EfficientNetB0]:
    """Config and encoder of a model folder; `recorded` is its config.json.

    Raises:
        UserError: a config of another version, or tensors that are damaged or do not fit it.
    """
    try:
        config = from_flat(recorded["config"])
        network = build_encoder(config)
        load_network(network, load_file(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error}); export the run again") from error
    return config, network
