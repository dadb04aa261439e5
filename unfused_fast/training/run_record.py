"""What a run directory records: config.json and its differences to a run that is to be resumed, result.json, and the
numbers of each epoch in log.jsonl and for trackers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unfused_fast import __version__
from unfused_fast.console import console
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import is_scale, read_json
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training.trackers import Tracker, TrackerName, numbers_in, open_tracker

VERSIONED = ("torch", "numpy", "zarr", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "triton")
COMPARED_VERSIONS = ("unfused-fast", "torch")
"""Versions that have to be the same. Ours: the packages that compute; a run may resume under another Python, for
example."""
FREE = ("train.save_every",)
"""Fields that may change from one part of a run to the next: no number depends on them."""
SHAPES = re.compile(
    r"method\.(name|queue|similarity)$|model\.(encoder|dim|channels|fc_layers|projector|proj_hidden|proj_dim)$"
    r"|frontend\.(n_mels|hop_samples)$|cluster\.k$|pseudo\.k$|data\.(crop_seconds|norm|partitions)$"
    r"|aug\.mixup\.(memory|partner)$|bank\.(dtype|encoder)$|loss\.instance$|distill\.(head|mse)$"
)
"""Fields that tensors of a checkpoint depend on: with other values it cannot be read."""
SWITCHES = ("aug.mixup.ratio", "distill.contrast")
"""Fields that have tensors unless they are 0."""
SHOWN = 6
"""Differences named in an error."""


def other_tensors(found: dict[str, tuple[Any, Any]]) -> bool:
    """Whether a checkpoint cannot be read with fields that were changed, name -> (before, now)."""
    return any(SHAPES.match(name) or (name in SWITCHES and 0 in values) for name, values in found.items())


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
    try:
        sound = all(isinstance(value[name], kind) for name, kind in kinds.items())
        optional: dict[str, type] = {"versions": dict, "resumed_with": list}
        sound = sound and all(isinstance(value[name], kind) for name, kind in optional.items() if name in value)
        if (log_mel := value["log_mel"]) is not None:  # None: a set without statistics
            sound = sound and is_scale(log_mel)
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not the config.json of a run of unfused-fast; name another directory")
    return dict(value)


def read_result(run: Path) -> dict[str, Any] | None:
    """result.json of a run; None where there is none. Raises UserError for a damaged one."""
    path = run / "result.json"
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error, "delete it, and run the same command again") from error


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


def differences(out: Path, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences of two contents of config.json, in settings, data, inputs, and versions that may change the numbers:
    name -> what was recorded, and what is now. Raises UserError for runs of different stages.
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


def in_words(found: Mapping[str, tuple[Any, Any]]) -> str:
    """The first few differences, as part of a sentence."""
    named = [f"{name} was {before}, now {after}" for name, (before, after) in found.items()]
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return "; ".join(named[:SHOWN]) + more


def order_of_batches(description: Mapping[str, Any]) -> list[Any]:
    """The settings that determine the clips of batch n of an epoch: a run stopped within an epoch resumes with the
    same.
    """
    settings, left_out = description["config"], description["inputs"].get("left_out")
    names = "train.seed", "train.batch_size", "data.sampler", "data.partitions"
    return [description["shards"], *(settings[name] for name in names), *([left_out] if left_out else [])]


def _compared(description: Mapping[str, Any]) -> dict[str, Any]:
    versions, settings = description.get("versions", {}), description["config"]
    return {
        **{name: value for name, value in settings.items() if name not in FREE},
        "shards": description["shards"],
        **description["inputs"],
        **{f"version of {name}": versions.get(name) for name in COMPARED_VERSIONS},
    }


class RunLog:
    """One line per epoch in log.jsonl, and the same numbers for each tracker. Training continues where one cannot be
    written (full disk, no network): a line is kept and written with the next one.
    """

    def __init__(self, out: Path, trackers: Sequence[TrackerName]) -> None:
        self.out, self.path, self._names = out, out / "log.jsonl", trackers
        self._trackers: list[Tracker] = []
        self._unwritten: list[str] = []

    def open(self, description: Mapping[str, Any]) -> None:
        """Begins or continues the run of each tracker. Raises UserError: see open_tracker."""
        for name in self._names:
            self._trackers.append(open_tracker(name, self.out, description))

    def append(self, epoch: int, values: dict[str, Any]) -> None:
        """Adds the numbers of an epoch."""
        self._unwritten.append(json.dumps({"epoch": epoch, **values}) + "\n")
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._unwritten)
            self._unwritten.clear()
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)  # without half a line
            self._say(error)
        for tracker in self._trackers:
            try:
                tracker.write(epoch, numbers_in(values))
            except OSError as error:
                self._say(error)

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Ends the run of each tracker that is open: with its result, or as one that was stopped."""
        while self._trackers:
            try:
                self._trackers.pop().end(result)
            except OSError as error:
                self._say(error)

    def _say(self, error: OSError) -> None:
        console.print(f"not logged, training continues: {self.out}: {cause(error)}", style="yellow")

    def drop_after(self, epoch: int) -> None:
        """Drops the lines of later epochs, and a truncated line."""
        if self.path.exists():
            lines = self.path.read_bytes().splitlines()
            replace_file(self.path, b"".join(line + b"\n" for line in lines if _epoch_of(line) <= epoch))


def _epoch_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf
