"""What the stages share: device, precision, compile, run directory, logs, signals."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from rich.console import Console

from unfused_fast import __version__
from unfused_fast.checkpoint import load_checkpoint, write_json
from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.settings import flatten
from unfused_fast.shards.table import ShardSet

Module = TypeVar("Module", bound=torch.nn.Module)
console = Console(stderr=True, highlight=False, soft_wrap=True)
VERSIONED = ("torch", "numpy", "zarr", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "triton")


class Interrupted(Exception):
    """The user pressed Ctrl-C (or sent SIGTERM); what was finished is saved."""


@dataclass(frozen=True)
class Options:
    """How a stage runs, apart from what it computes."""

    device: torch.device
    compile: bool | None = None
    """torch.compile; None is on for CUDA and off for CPU, where compiling takes longer than a short run."""
    resume: bool = False
    overwrite: bool = False


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> device. Raises UserError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: want auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: want auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise UserError(
            f"--device {name}: PyTorch {torch.__version__} sees {found} here; use --device cpu (see: unfused-fast "
            "doctor)"
        )
    return device


def resolve_batch_size(config: Config, clips: int) -> int:
    """The batch size of a run over `clips` clips: never more than there are, so that an epoch has a step."""
    if clips < 2:
        raise UserError(f"the train split has {clips} clip; training needs at least 2")
    wanted = config.train.batch_size
    if wanted == "auto":
        found = min(512, max(16, 1 << max(0, (clips // 16).bit_length() - 1)), clips)
        console.print(f"train.batch_size: auto is {found} for {clips} clips")
        return found
    return min(wanted, clips)


def resolve_amp(config: Config, device: torch.device) -> bool:
    """Whether forward passes run in bf16: by `train.amp`; `auto` where the device multiplies bf16 in hardware.

    Ours: on a CPU with AVX-512 BF16 or AMX a step took half the time of float32; without them bf16 is emulated and
    slow.
    """
    if config.train.amp != "auto":
        return config.train.amp == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing, by resolve_amp."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if resolve_amp(config, device) else nullcontext()


def prepare_for(network: Module, device: torch.device) -> Module:
    """Moves a network to the device, channels last: the layout its convolutions run fastest in, on CPU and GPU."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """torch.compile of a network or step as one graph, where asked for."""
    wanted = options.compile if options.compile is not None else options.device.type == "cuda"
    return torch.compile(function, fullgraph=True) if wanted else function


class Run:
    """A run directory: config.json, log.jsonl, TensorBoard, checkpoints, result.json; and the signals that stop it."""

    def __init__(
        self, out: Path, stage: str, config: Config, shards: ShardSet, options: Options, **inputs: Any
    ) -> None:
        """Makes or reopens the directory. Raises UserError when it holds another run, or one that --resume does not
        fit.
        """
        self.out, self.stage, self.stopping = out, stage, False
        self.checkpoints = out / "checkpoints"
        description: dict[str, Any] = {
            "stage": stage,
            "config": flatten(config),
            "shards": shards.manifest.digest,
            "log_mel": shards.manifest.log_mel,
            "inputs": inputs,
            "versions": _versions(),
            "device": _device_name(options.device),
        }
        recorded = out / "config.json"
        if recorded.exists() and not self.saved and not (out / "result.json").exists():
            shutil.rmtree(out)  # stopped before its first checkpoint: there is nothing to lose
        if recorded.exists() and options.resume:
            _refuse_differences(out, json.loads(recorded.read_text()), json.loads(json.dumps(description)))
        elif recorded.exists() and options.overwrite:
            shutil.rmtree(out)
        elif recorded.exists():
            raise UserError(
                f"{out}: there is a run already; use --resume to go on, --overwrite to start again, or another --out"
            )
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: it exists and is not a run of unfused-fast; choose another --out")
        self.resumed = recorded.exists() and self.saved
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(recorded, description)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
        self._started, self._description = time.perf_counter(), description
        self._board: Any = None

    @property
    def saved(self) -> bool:
        """Whether the directory holds a checkpoint."""
        return any(self.checkpoints.glob("epoch-*.json"))

    def result(self) -> dict[str, Any] | None:
        """What an earlier, finished run wrote, when --resume finds nothing left to do."""
        path = self.out / "result.json"
        if not path.exists():
            return None
        console.print(f"{self.out}: finished already")
        return dict(json.loads(path.read_text()))

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The newest sound checkpoint of this run; says which newer ones were damaged. Later log lines are dropped."""
        tensors, state, damaged = load_checkpoint(self.checkpoints)
        for sentence in damaged:
            console.print(f"[yellow]{sentence}; going on from epoch {state['epoch']}[/]")
        log = self.out / "log.jsonl"
        if log.exists():
            kept = [line for line in log.read_text().splitlines() if json.loads(line)["epoch"] <= state["epoch"]]
            log.write_text("".join(f"{line}\n" for line in kept))
        console.print(f"{self.out}: going on after epoch {state['epoch']}")
        return tensors, state

    def log(self, epoch: int, values: dict[str, Any]) -> None:
        """One line of log.jsonl and the numbers to TensorBoard."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=epoch)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, epoch)

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes result.json and says where the run is."""
        if self._board is not None:
            self._board.close()
        result = {
            "stage": self.stage,
            **result,
            "seed": self._description["config"]["train.seed"],
            "epochs": self._description["config"]["train.epochs"],
            "config_digest": config_digest(self._description["config"]),
            "data_digest": self._description["shards"],
            "seconds": round(time.perf_counter() - self._started, 2),
            "run": str(self.out),
        }
        write_json(self.out / "result.json", result)
        console.print(f"{self.stage}: wrote {self.out} ({result['seconds']:.1f} s)")
        return result

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the step finish and set `stopping`; a second one ends at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            console.print("[yellow]stopping after this step; once more to stop at once[/]")

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever owns it also owns the signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def config_digest(flat: dict[str, Any]) -> str:
    """sha256 of a flattened config: equal digests, equal settings."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=list).encode()).hexdigest()


def seed_everything(seed: int) -> None:
    """Seeds torch's generators; order and views have their own counter-based numbers."""
    torch.manual_seed(seed)


def _versions() -> dict[str, str]:
    versions = {"unfused-fast": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def _refuse_differences(out: Path, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    before, after = (
        {**recorded["config"], "shards": recorded["shards"], **recorded["inputs"]},
        {**wanted["config"], "shards": wanted["shards"], **wanted["inputs"]},
    )
    names = [name for name in sorted(set(before) | set(after)) if before.get(name) != after.get(name)]
    if recorded["stage"] != wanted["stage"]:
        raise UserError(
            f"{out}: it holds a run of stage {recorded['stage']}, not {wanted['stage']}; choose another --out"
        )
    if names:
        differences = "; ".join(f"{name} was {before.get(name)}, now {after.get(name)}" for name in names[:6])
        raise UserError(
            f"{out}: --resume goes on with the same run only, but {differences}; use the same values, or another --out"
        )
