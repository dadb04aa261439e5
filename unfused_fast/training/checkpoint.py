"""Checkpoints: safetensors for tensors, JSON for the rest; written whole or not at all, verified when read, never
pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import is_count, is_number, read_json
from unfused_fast.shards.packing.building import to_disk
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.strict_state import expected, misfit

SHOWN = 4
"""Tensors named in an error."""
KEPT = 2
"""Number of checkpoints kept: the last, and the one before it in case the last is damaged."""


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, written as replace_file does."""
    replace_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions of any new file; files that the library writes itself are readable by
    their owner only.

    Raises OSError or SafetensorError.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata)
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises OSError, with the system's reason, or SafetensorError."""
    with path.open("rb"):  # the library reports a file without read permission as missing
        return load_file(path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Position(NamedTuple):
    """Progress of a run: epochs done, and batches done of the next."""

    epoch: int
    batch: int = 0

    @property
    def name(self) -> str:
        """Name of its checkpoint; names sort like positions."""
        return f"epoch-{self.epoch:06d}" + (f"-batch-{self.batch:09d}" if self.batch else "")

    def __str__(self) -> str:
        return f"batch {self.batch} of epoch {self.epoch + 1}" if self.batch else f"epoch {self.epoch}"


def checkpoints_in(directory: Path) -> list[Path]:
    """JSON files of the checkpoints, from the earliest position to the latest. Raises OSError for a folder that cannot
    be read, which glob treats as empty.
    """
    paths = directory.iterdir() if directory.exists() else ()
    return sorted((path for path in paths if path.match("epoch-*.json")), key=lambda path: path.stem)


def to_host(tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Copies tensors to the host; returns a function that waits for the copies and returns them.

    From a GPU the copies to pinned memory are queued on its stream, so that the caller continues at once and may change
    the tensors; only the writer of the copies waits for them.
    """
    copies = dict[str, Tensor]()
    for name, tensor in tensors.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor.detach(), non_blocking=True)
    devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def copied() -> dict[str, Tensor]:
        for event in events:
            event.synchronize()
        return copies

    return copied


def save_checkpoint(directory: Path, position: Position, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Writes `epoch-<n>[-batch-<m>].safetensors` of tensors on the CPU and, last, the JSON with its digest.

    Then deletes all others except the one before it and the last one at the end of an epoch with a generation of the
    bank, which other commands read. Later ones are damaged: the run was resumed before them. Raises UserError when it
    cannot be written.
    """
    assert state.keys().isdisjoint(Position._fields), "the position is not overwritten"
    path = directory / f"{position.name}.safetensors"
    partial = path.with_name(path.name + ".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(partial, tensors)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        digest = sha256_of(partial)
        partial.replace(path)
        write_json(path.with_suffix(".json"), {**position._asdict(), "sha256": digest, **state})
        to_disk(directory)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: could not be written ({cause(error)}); earlier checkpoints are intact, so free space and "
            "continue with --resume"
        ) from error
    _prune(directory, position)
    return path


def _prune(directory: Path, newest: Position) -> None:
    before = [path for path in checkpoints_in(directory) if path.stem <= newest.name]
    kept = before[-KEPT:] + [path for path in before if _whole(path)][-1:]
    for old in directory.glob("epoch-*"):
        if old.with_suffix(".json") not in kept:
            with suppress(OSError):
                old.unlink()


def _whole(path: Path) -> bool:
    """Whether a checkpoint stands at the end of an epoch and needs no rows beside it; not one that is damaged."""
    try:
        return "-batch-" not in path.stem and dict(read_json(path)).get("bank") != "here"
    except (OSError, ValueError, TypeError):
        return False


def load_checkpoint(
    directory: Path, fault: Callable[[dict[str, Any]], str | None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The newest sound checkpoint: tensors on the CPU, its JSON, and a sentence for each newer one that is damaged.

    `fault` gets the JSON of a sound one, and returns why the files that it refers to cannot be used, or None. Raises
    UserError when there is none left, or the newest may not be read.
    """
    damaged: list[str] = []
    try:
        checkpoints = checkpoints_in(directory)
    except OSError as error:
        raise unreadable(directory, error, "train again, or name another run") from error
    for path in reversed(checkpoints):
        tensors_path = path.with_suffix(".safetensors")
        try:
            state = _checked(path, read_json(path))
            if sha256_of(tensors_path) != state.get("sha256"):
                raise ValueError("its digest does not match")
            if fault is None or (found := fault(state)) is None:
                return read_tensors(tensors_path), state, damaged
            damaged.append(found)
        except PermissionError as error:  # else an earlier one would be used needlessly
            raise unreadable(Path(error.filename or tensors_path), error, "") from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"{tensors_path} is damaged ({cause(error)})")
    reasons = "; ".join(damaged) if damaged else "there is none"
    raise UserError(f"{directory}: no usable checkpoint: {reasons}; train again, or point to another run")


def _checked(path: Path, state: Any) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises ValueError unless its values have the types that are written."""
    if isinstance(state, dict):
        numbers = [state.get("seconds", 0), *state.get("nmis", [])]
        counts = [state.get("epoch"), state.get("batch"), *(state.get(name, 0) for name in ("step", "k", "collapsed"))]
        sound = all(map(is_number, numbers)) and all(map(is_count, counts))
        if sound and Position(state["epoch"], state["batch"]).name == path.stem:
            return state
    raise ValueError(f"{path.name} is not what was written")


def collect(network: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """`model.*` and `optim.*` tensors of a network and its optimiser, and the generators' states."""
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    if optimizer is not None:
        for name, parameter in network.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optim.{name}.{key}"] = torch.as_tensor(value)
    tensors["rng.cpu"] = torch.get_rng_state()
    # not by a run on a CPU, which would begin to use the GPU here
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(tensors: dict[str, Tensor], network: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Inverse of collect. Strict: raises UserError that lists what is missing, unexpected or of another shape."""
    load_network(
        network, {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    )
    if optimizer is not None:
        keys = "momentum_buffer", "step", "exp_avg", "exp_avg_sq"
        for name, parameter in network.named_parameters():
            for full in (f"optim.{name}.{key}" for key in keys if f"optim.{name}.{key}" in tensors):
                value = tensors[full]
                if value.ndim and value.shape != parameter.shape:
                    raise misfit(f"{full} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
                # on the parameter's device and in its memory layout, which fused optimisers rely on
                optimizer.state[parameter][full.rpartition(".")[2]] = (
                    torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
                )
    torch.set_rng_state(expected(tensors, "rng.cpu", torch.uint8, tuple(torch.get_rng_state().shape)))
    if "rng.cuda" in tensors and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        own = torch.cuda.get_rng_state()
        torch.cuda.set_rng_state(expected(tensors, "rng.cuda", torch.uint8, tuple(own.shape)))


def load_network(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads exactly the network's tensors. Raises UserError when names, shapes or types differ."""
    refuse_misfit(network.state_dict(), tensors)
    network.load_state_dict(tensors)


def refuse_misfit(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raises UserError when names, shapes or types differ from a network's own, which may be on the meta device."""
    if differing := misfitting(own, tensors):
        raise misfit(differing)


def misfitting(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """The first few tensors whose names, shapes or types differ from a network's own, as text; empty: none."""
    kinds, found = (
        {name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in given.items()}
        for given in (own, tensors)
    )
    differing = [
        f"{name} is {found.get(name, 'missing')}, want {kinds.get(name, 'none')}"
        for name in sorted({**kinds, **found})
        if kinds.get(name) != found.get(name)
    ]
    return "; ".join(differing[:SHOWN]) + (f"; and {len(differing) - SHOWN} more" * (len(differing) > SHOWN))
