"""A model folder: one encoder without its run, for sharing.

FOLDER/config.json         as in a run: stage, config, digest of the training shards, log-mel statistics; no inputs
FOLDER/model.safetensors   tensors of the encoder, named as in models/audiontt.py, in float32
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
from torch import Tensor, nn

from unfused_fast.config import Config, from_flat
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.models import AudioNTT, EfficientNetB0, build_encoder
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training.checkpoint import load_network, read_tensors, write_json, write_tensors

WEIGHTS = "model.safetensors"
_FILES = {"config.json", WEIGHTS, "README.md"}


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
    """Writes a model folder, which appears only when complete.

    A folder that it replaces is FOLDER.replaced until then, and is put back if a run was killed between the two
    renames.

    Args:
        description: what config.json holds: stage, config, shards, log_mel, inputs.
        card: text of README.md.
        overwrite: replace a model folder. Nothing but its own files is ever deleted.

    Raises:
        UserError: something is at `folder`, it holds more than a model folder's files, or it cannot be written.
    """
    given, folder = folder, folder.resolve()  # a link is kept
    partial, replaced = (folder.with_name(folder.name + ending) for ending in (".partial", ".replaced"))
    for place in (partial, replaced, folder):
        if place.exists() and not place.is_dir():
            raise UserError(f"{given if place == folder else place}: it is a file; choose another path")
        held = {path.name.removesuffix(".new") for path in place.iterdir()} if place.is_dir() else set[str]()
        if others := sorted(held - _FILES):
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise UserError(
                f"{given if place == folder else place}: it holds more than a model folder's files ({shown}); move "
                "them, or choose another path"
            )
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{given}: it exists and is not a model folder; choose another path")
        if not overwrite:
            raise UserError(
                f"{given}: it already contains a model folder; choose another path, or replace it with --overwrite"
            )
    tensors: dict[str, Tensor] = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial / WEIGHTS, tensors, {"format": "pt"})
        to_disk(partial / WEIGHTS)
        write_json(partial / "config.json", dict(description))
        if card is not None:
            replace_file(partial / "README.md", card.encode())
        to_disk(partial)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        to_disk(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{given}: cannot be written ({cause(error)}); free space, or choose another path") from error


def read_model_folder(folder: Path, recorded: Mapping[str, Any]) -> tuple[Config, AudioNTT | EfficientNetB0]:
    """Config and encoder of a model folder; `recorded` is its config.json.

    Raises:
        UserError: a config of another version, or tensors that are damaged or do not fit it.
    """
    try:
        config = from_flat(recorded["config"])
        network = build_encoder(config)
        load_network(network, read_tensors(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise unreadable(folder / WEIGHTS, error, "export the run again") from error
    return config, network
