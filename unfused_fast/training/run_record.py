"""config.json of a run directory: its content, and the differences to a run that is to be resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unfused_fast import __version__
from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import is_number, read_json

VERSIONED = ("torch", "numpy", "zarr", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "triton")
COMPARED_VERSIONS = ("unfused-fast", "torch")
"""Versions that have to be the same. Ours: the packages that compute; a run may resume under another Python, for
example."""
FREE = ("train.save_every",)
"""Fields that may change from one part of a run to the next: no number depends on them."""
SHAPES = re.compile(
    r"model\.(encoder|dim|channels|fc_layers|proj\w+|prediction)$|frontend\.(n_mels|hop_samples)$|cluster\.k$"
    r"|pseudo\.k$|data\.crop_seconds$|aug\.mixup\.memory$|bank\.dtype$"
)
"""Fields that tensors of a checkpoint depend on: with other values it cannot be read."""
SHOWN = 6
"""Differences named in an error."""

Differences = dict[str, tuple[Any, Any]]
"""Name -> what was recorded, and what is now."""


def read_description(run: Path) -> dict[str, Any] | None:
    """config.json of a run; None where there is none. Raises UserError for a damaged or foreign one."""
    path = run / "config.json"
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "name another directory, or train again") from error
    kinds: dict[str, type] = {"stage": str, "config": dict, "shards": str, "inputs": dict}
    if not isinstance(value, dict) or not {*kinds, "log_mel"} <= set(value):
        raise UserError(f"{path}: not the config.json of a run of unfused-fast; name another directory")
    wrong = [name for name, kind in kinds.items() if not isinstance(value[name], kind)]
    log_mel = {"mean": 0, "std": 1} if value["log_mel"] is None else value["log_mel"]  # None: a set without statistics
    numbers: list[Any] = [log_mel.get(name) for name in ("mean", "std")] if isinstance(log_mel, dict) else [None]
    if not all(map(is_number, numbers)) or numbers[-1] <= 0:
        wrong.append("log_mel")
    if wrong:
        raise UserError(f"{path}: its {', '.join(wrong)} is not what a run of unfused-fast records; train again")
    return value


def read_result(run: Path) -> dict[str, Any] | None:
    """result.json of a run; None where there is none. Raises UserError for a damaged one."""
    path = run / "result.json"
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error, "delete it, and give the same command again") from error


def config_digest(flat: dict[str, Any]) -> str:
    """sha256 of a flattened config: equal digests, equal settings."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=list).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the software that computes, by name."""
    found = {"unfused-fast": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU and its threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def differences(out: Path, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> Differences:
    """Differences of two contents of config.json: settings, data, inputs, and versions that may change the numbers.
    Raises UserError for runs of different stages.
    """
    if recorded["stage"] != current["stage"]:
        raise UserError(
            f"{out}: it holds a run of stage {recorded['stage']}, not {current['stage']}; choose another --out"
        )
    before, after = _compared(recorded), _compared(current)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }


def in_words(found: Differences) -> str:
    """The first few differences, as part of a sentence."""
    named = [f"{name} was {before}, now {after}" for name, (before, after) in found.items()]
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return "; ".join(named[:SHOWN]) + more


def order_of_batches(description: Mapping[str, Any]) -> list[Any]:
    """The settings that determine the clips of batch n of an epoch: a run stopped within an epoch resumes with the
    same.
    """
    settings, left_out = description["config"], description["inputs"].get("left_out")
    names = "train.seed", "train.batch_size", "data.sampler"
    return [description["shards"], *(settings[name] for name in names), *([left_out] if left_out else [])]


def _compared(description: Mapping[str, Any]) -> dict[str, Any]:
    versions, settings = description.get("versions", {}), description["config"]
    return {
        **{name: value for name, value in settings.items() if name not in FREE},
        "shards": description["shards"],
        **description["inputs"],
        **{f"version of {name}": versions.get(name) for name in COMPARED_VERSIONS},
    }
