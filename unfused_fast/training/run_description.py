"""config.json of a run directory: what it says, read with care, and the versions and the device that it names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

from unfused_fast import __version__
from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import is_number, read_json

VERSIONED = ("torch", "numpy", "zarr", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "triton")


def read_description(run: Path) -> dict[str, Any] | None:
    """config.json of a run; None where there is none. Raises UserError for one that is damaged or somebody else's."""
    path = run / "config.json"
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "name another directory, or train again") from error
    if not isinstance(value, dict) or not {"stage", "config", "shards", "inputs", "log_mel"} <= set(value):
        raise UserError(f"{path}: it is not that of a run of unfused-fast; name another directory")
    kinds: dict[str, type] = {"stage": str, "config": dict, "shards": str, "inputs": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(value[name], kind)]
    if wrong or not _is_log_mel(value["log_mel"]):
        raise UserError(
            f"{path}: its {', '.join(wrong or ['log_mel'])} is not what a run of unfused-fast records; train again"
        )
    return value


def _is_log_mel(value: Any) -> bool:
    """Whether a value is mean and standard deviation of log-mels, or None, of a set without statistics."""
    if not isinstance(value, dict):
        return value is None
    return is_number(value.get("mean")) and is_number(value.get("std")) and bool(value["std"] > 0)


def config_digest(flat: dict[str, Any]) -> str:
    """sha256 of a flattened config: equal digests, equal settings."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=list).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of what computes here, by name."""
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
