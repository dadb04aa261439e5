"""A model folder: one encoder without its run, for sharing.

FOLDER/config.json         as in a run: stage, config, digest of the training shards, log-mel statistics; no inputs; and
                           weights_sha256, of model.safetensors, which is checked where it is there
FOLDER/model.safetensors   tensors of the encoder, named as in models/audiontt.py, in float32; filters and matrices also
                           in float16, which become float32 when they are read
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

from unfused_fast.config import SHIPPED, Config, from_flat
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.hub import FILES, hub_folder, is_hub, pinned
from unfused_fast.models import AudioNTT, EfficientNetB0, build_encoder
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training.checkpoint import load_network, read_tensors, sha256_of, write_json, write_tensors
from unfused_fast.training.replacing import refuse_others, replaceable

WEIGHTS = "model.safetensors"


def encoder_place(run: str | Path) -> Path:
    """The folder of an encoder: of the package for `base`, in the cache for hf://USER/NAME, else the path itself.

    Raises UserError for `base` where the working directory has a run of that name too; and as hub.hub_folder.
    """
    if is_hub(run):
        return hub_folder(str(run))
    place = Path(run)
    if place != Path(SHIPPED):
        return place
    if (place / "config.json").exists():
        raise UserError(
            f"{SHIPPED}: the name of the encoder that comes with unfused-fast, and of a folder here; for the folder "
            f"give {place.resolve()}, for the other start in another directory"
        )
    return Path(__file__).parents[1] / SHIPPED


def encoder_name(run: str | Path) -> str:
    """How records name an encoder: its path, or hf://USER/NAME with the commit. Raises as hub.hub_folder."""
    return pinned(str(run)) if is_hub(run) else str(run)


def to_half(network: nn.Module) -> None:
    """Rounds filters and matrices to float16's values, in place; biases and statistics stay. Ours: 11 bits of each
    weight move an embedding by less than a thousandth of its norm, and the file is half as large.

    Raises UserError for a weight beyond float16's range.
    """
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            value.copy_(value.half())
            if not bool(value.isfinite().all()):
                raise UserError(f"{name}: weights beyond the range of float16 (65504); write float32, without --half")


def encoder_digest(network: nn.Module) -> str:
    """sha256 (hex) of an encoder's tensors, by name: the same for a run and the folder exported from it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_model_folder(
    folder: Path,
    network: nn.Module,
    description: Mapping[str, Any],
    card: str | None = None,
    overwrite: bool = False,
    half: bool = False,
) -> None:
    """Writes a model folder, which appears only when complete.

    A folder that it replaces is FOLDER.replaced until then, see check_model_folder.

    Args:
        description: what config.json holds: stage, config, shards, log_mel, inputs.
        card: text of README.md.
        overwrite: replace a model folder. Nothing but its own files is ever deleted.
        half: write what to_half rounded in float16.

    Raises:
        UserError: as check_model_folder, or it cannot be written.
    """
    check_model_folder(folder, overwrite)
    given, (folder, partial, replaced) = folder, _places(folder)
    tensors: dict[str, Tensor] = {
        name: (value.half() if half and value.ndim > 1 else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial / WEIGHTS, tensors, {"format": "pt"})
        to_disk(partial / WEIGHTS)
        write_json(partial / "config.json", {**description, "weights_sha256": sha256_of(partial / WEIGHTS)})
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


def check_model_folder(folder: Path, overwrite: bool) -> None:
    """Puts a folder back that a killed run had renamed to replace it.

    Raises UserError: something that is not to be replaced is at `folder`, or it holds more than a model folder's files.
    """
    given, (folder, _, replaced) = folder, _places(folder)
    replaceable(given, FILES, "a model folder", "another path")
    refuse_others(replaced, FILES, "a model folder", "another path")
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{given}: it exists and is not a model folder; choose another path")
        if not overwrite:
            raise UserError(
                f"{given}: it already contains a model folder; choose another path, or replace it with --overwrite "
                "(in Python: overwrite=True)"
            )


def _places(folder: Path) -> tuple[Path, Path, Path]:
    """A model folder, and where the new and the old one are while it is replaced."""
    place = folder.resolve()  # a link is kept
    return place, place.with_name(f"{place.name}.partial"), place.with_name(f"{place.name}.replaced")


def read_model_folder(folder: Path, recorded: Mapping[str, Any]) -> tuple[Config, AudioNTT | EfficientNetB0]:
    """Config and encoder of a model folder; `recorded` is its config.json.

    Raises:
        UserError: a config of another version, or tensors that are damaged or do not fit it.
    """
    try:
        config = from_flat(recorded["config"])
        if recorded["log_mel"] is None and config.data.norm in ("dataset", "running"):
            raise UserError(
                "config.json has no mean and std of log-mels (log_mel), which it needs; get the folder again"
            )
        network = build_encoder(config)
        if recorded.get("weights_sha256", digest := sha256_of(folder / WEIGHTS)) != digest:
            raise UserError(f"{WEIGHTS} is not the file of config.json (its sha256 differs); get the folder again")
        tensors = read_tensors(folder / WEIGHTS)
        halves = {name: value.float() for name, value in tensors.items() if value.dtype == torch.float16}
        load_network(network, {**tensors, **halves})
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise unreadable(folder / WEIGHTS, error, "export the run again") from error
    return config, network
