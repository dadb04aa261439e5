"""Shared by the stages: the console, device, precision, compile, batch size, seeding."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from unfused_fast.config import Config
from unfused_fast.console import console, counted
from unfused_fast.data import Loader
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.float32 import ieee_float32
from unfused_fast.launch import Place
from unfused_fast.optional import missing_compiler
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.split_names import FIRST_SPLITS
from unfused_fast.training.trackers import TrackerName

Module = TypeVar("Module", bound=torch.nn.Module)


DEFAULT_SECONDS = 600.0
"""Seconds between two saves within an epoch. Ours: no more than ten minutes are lost, and a save every ten minutes
costs less than a hundredth of them."""


@dataclass(frozen=True)
class SaveEvery:
    """When a run saves within an epoch; at the end of an epoch it saves by `train.save_every`."""

    steps: int | None = None
    """After this many optimiser steps, counted over the whole run."""
    seconds: float | None = DEFAULT_SECONDS
    """When this many seconds have passed since the last save."""


def parse_save_every(text: str | None) -> tuple[SaveEvery, int | None]:
    """`500steps`, `300s` or `2epochs` -> how often to save within an epoch, and `train.save_every` where it was given.

    `2epochs` saves within no epoch. None: the default. Raises UserError for anything else.
    """
    if text is None:
        return SaveEvery(), None
    found = re.fullmatch(r"([1-9]\d{0,8})\s*(steps?|s|epochs?)", text.strip())
    if found is None:
        raise UserError(
            f"--save-every {text}: want a whole number of steps, seconds or epochs, as 500steps, 300s or 2epochs"
        )
    number, unit = int(found[1]), found[2]
    if unit.startswith("epoch"):
        return SaveEvery(seconds=None), number
    return (SaveEvery(None, number) if unit == "s" else SaveEvery(number, None)), None


GRAPH_MODES = "reduce-overhead", "max-autotune"
"""Modes of torch.compile that record CUDA graphs. Source: torch._inductor.list_mode_options."""


class Paused(Interrupted):
    """The run stands, saved, at the end of epoch `Options.until_epoch`."""


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing is printed to the console inside the block: for small steps of a larger job."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@dataclass(frozen=True)
class Options:
    """How a stage runs: options that do not change its result."""

    device: torch.device
    compile: bool | None = None
    """torch.compile; None is on for one process on CUDA. Ours: on a CPU compiling takes longer than a short run, and of
    AudioNTT on several ranks TorchDynamo keeps no block, since each has a collective operation of its BatchNorm within.
    """
    compile_mode: str = "default"
    """Mode of torch.compile. Those in GRAPH_MODES replay a step's kernels as graphs, and refuse what torch would do
    without them in silence: on a CPU no graph, with several ranks one for each piece of the network between two
    collective operations, and copies of all that goes from one to the next.
    """
    resume: bool = False
    resume_anyway: bool = False
    """Resume even where config, data or versions differ."""
    again: str = "continue with --resume"
    """What a run that was stopped says to do; commands that make several runs have no such flag."""
    overwrite: bool = False
    until_epoch: int | None = None
    """Epoch after which the run is saved and Paused, unless it ends there; a resumed run that is past it pauses before
    the next epoch. Ours: a search looks at a run between two epochs, and gives up or goes on.
    """
    save_every: SaveEvery = field(default_factory=SaveEvery)
    profile: bool = False
    """See Profile in progress.py."""
    ranks: Ranks = ALONE
    """The processes that train together."""
    log_to: tuple[TrackerName, ...] = ("tensorboard",)
    """Where the numbers of each epoch go, beside log.jsonl."""
    skip_bad: int = 0
    """Most clips that may be left out because they cannot be read or decoded."""

    def __post_init__(self) -> None:
        flag = f"--compile-mode {self.compile_mode}"
        if self.compile_mode != "default" and not self.compiles:
            where = "on a CPU" if self.device.type == "cpu" else "with several processes"
            off = "--no-compile is given" if self.compile is False else f"torch.compile is off by default {where}"
            raise UserError(f"{flag}, but {off}; give --compile, or leave out --compile-mode")
        if self.replays and self.device.type != "cuda":
            raise UserError(
                f"{flag} records CUDA graphs, and the device is {self.device}; use default or "
                "max-autotune-no-cudagraphs"
            )
        if self.replays and self.ranks.together:
            raise UserError(
                f"{flag} records CUDA graphs, which the collective operations of {self.ranks.world_size} processes "
                "would cut into pieces; use default or max-autotune-no-cudagraphs, or one process"
            )

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is on."""
        return self.device.type == "cuda" and not self.ranks.together if self.compile is None else self.compile

    @property
    def replays(self) -> bool:
        """Whether the network runs as CUDA graphs, whose outputs a later step overwrites."""
        return self.compiles and self.compile_mode in GRAPH_MODES

    def begin_step(self) -> None:
        """From here on the outputs of networks in CUDA graphs may be overwritten; reading an old one then raises.

        Ours: once a step, not once a part of it, as gradients lie in the graphs' memory until the optimiser read them.
        """
        if self.replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    @property
    def threads(self) -> int:
        """Decoding threads of this process: its share of the machine's cores, up to 16."""
        return max(1, min(available_cores() // self.ranks.local_size, 16))


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> device, which becomes the current one, for generators and events.

    Raises UserError for a missing GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "mps":
        raise UserError(
            "--device mps: sums and ties are computed in float64, which MPS does not have; use --device cpu"
        )
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name) is None:
        raise UserError(f"--device {name}: want auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise UserError(
            f"--device {name}: PyTorch {torch.__version__} sees {found} here; use --device cpu (see: unfused-fast "
            "doctor)"
        )
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def join(place: Place | None, device: torch.device, timeout_s: float) -> Ranks:
    """Connects the processes that train together; only rank 0 prints. Raises UserError when they cannot connect."""
    if place is None:
        return ALONE
    if not torch.distributed.is_available():
        raise UserError(f"PyTorch {torch.__version__} was built without torch.distributed; use one process")
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // place.local_size))
    console.quiet = place.rank != 0
    return Ranks(place, device, timeout_s)


def train_clips(shards: ShardSet) -> int:
    """Clips of the train split; reports splits that no stage reads. Raises UserError for a set without one."""
    if "train" not in shards.manifest.splits:
        raise UserError(
            f"{shards.directory}: it has no train split (only {', '.join(shards.manifest.splits)}); pack one"
        )
    report_unused_splits(shards)
    return shards.manifest.splits["train"].clips


def report_unused_splits(shards: ShardSet) -> None:
    """Reports splits that no stage reads, nor an evaluation without folds."""
    for name, info in shards.manifest.splits.items():
        if name not in FIRST_SPLITS:
            console.once(
                f"{shards.directory}: split '{name}' ({counted(info.clips, 'clip')}) is not used: only splits named "
                f"{', '.join(FIRST_SPLITS)} are; to use it, pack it again under one of these names",
                style="yellow",
            )


def resolve_batch_size(config: Config, clips: int) -> int:
    """The batch size of a run over `clips` clips: at most `clips`, so that an epoch has a step."""
    if clips < 2:
        raise UserError(f"the train split has {counted(clips, 'clip')}; training needs at least 2")
    found = config.train.clips_a_step(clips)
    if config.train.batch_size == "auto":
        console.once(f"train.batch_size: auto is {found} for {clips} clips")
    return found


def train_loader(
    config: Config, shards: ShardSet, options: Options, batch_size: int, left_out: Sequence[int]
) -> Loader:
    """The train split without clips `left_out`; this rank reads its part of it.

    Raises UserError unless there is a full batch, and on every rank, of each batch, a clip for each of
    `train.accumulate` parts, two where BatchNorm normalises over this rank's alone, as drawn batches do not promise;
    and where the split cannot be read, on all ranks what one of them found.
    """
    if options.ranks.together and config.data.sampler != "every_clip" and not config.model.sync_bn:
        raise UserError(
            f"model.sync_bn = False, but data.sampler = {config.data.sampler} may draw a single clip of a batch for a "
            "process, and BatchNorm wants at least 2; leave model.sync_bn at True, or use data.sampler=every_clip"
        )
    loader = options.ranks.every(
        lambda: Loader(
            shards,
            "train",
            config,
            device=options.device,
            batch_size=batch_size,
            share=options.ranks.share,
            threads=options.threads,
            left_out=left_out,
        )
    )
    if not loader.full_batches:
        raise UserError(
            f"{shards.directory}: only {loader.clips} clips of train can be read, fewer than "
            f"train.batch_size = {batch_size}; use a smaller --set train.batch_size"
        )
    least = int(options.ranks.every(lambda: loader.order.sizes)[: loader.full_batches].min())
    if not least:
        raise UserError(
            f"of a batch of {batch_size} clips one of the {options.ranks.world_size} processes has none; use fewer of "
            "them or a larger --set train.batch_size"
        )
    clips = 1 if options.ranks.together and config.model.sync_bn else 2
    if clips * config.train.accumulate > least:
        raise UserError(
            f"train.accumulate = {config.train.accumulate}, but of a batch of {batch_size} clips a process has "
            f"{least}, and BatchNorm wants at least {clips} in each part; use fewer parts or a larger --set "
            "train.batch_size"
        )
    return loader


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


def precision(config: Config, device: torch.device) -> Literal["bf16", "fp32"]:
    """The result of resolve_amp, as text."""
    return "bf16" if resolve_amp(config, device) else "fp32"


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing, by resolve_amp."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if resolve_amp(config, device) else nullcontext()


def full_precision(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Around whole steps, their backward passes too: where resolve_amp gives float32, TF32 is off."""
    return nullcontext() if resolve_amp(config, device) else ieee_float32()


def prepare_for(network: Module, device: torch.device) -> Module:
    """Moves a network to the device, channels last: the layout its convolutions run fastest in, on CPU and GPU."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """torch.compile of a network or step, where enabled: as one graph, or with several ranks as what TorchDynamo finds
    between collective operations.

    Resets earlier compilations: a command that trains networks of several sizes would exceed torch.compile's limit of
    graphs of one function. Raises UserError where the compiler that torch.compile needs is missing.
    """
    if not options.compiles:
        return function
    if (missing := missing_compiler("C" if options.device.type == "cuda" else "C++")) is not None:
        raise UserError(f"torch.compile needs {missing}, or use --no-compile")
    torch.compiler.reset()
    return torch.compile(function, fullgraph=not options.ranks.together, mode=options.compile_mode)
