"""What the commands of the command line share: flags, and settings from them. Imports nothing heavy."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from unfused_fast.commands.launching.launcher import start_devices
from unfused_fast.commands.launching.ray_launcher import start_on_ray
from unfused_fast.commands.options import pairs, run_options, stage_config
from unfused_fast.config import MethodName, PresetName, Stage, Store
from unfused_fast.launch import TIMEOUT_SECONDS, place_of

if TYPE_CHECKING:
    from unfused_fast.config import Config
    from unfused_fast.training import Options

Shards = Annotated[
    str,
    typer.Argument(
        help="A shard set, as `unfused-fast shard` writes it; from a URL (s3://, gs://, https://) it is copied to "
        "UNFUSED_CACHE or ~/.cache/unfused-fast first, and used from there while it stays the same.",
        show_default=False,
    ),
]
Preset = Annotated[PresetName, typer.Option(help="Where the settings come from.")]
Method = Annotated[
    MethodName | None,
    typer.Option(
        help="How to learn without labels; brings its own settings, see `unfused-fast config --method NAME`.",
        show_default="decar-v2",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="A config field, such as cluster.k=256; repeatable (see: unfused-fast config)."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings from a file, as `unfused-fast config --yaml` prints them, or the config.json of a run; other "
        "flags and --set win.",
        show_default=False,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seeds weights, order, views, clustering.", show_default="0")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile; on by default on CUDA.", show_default=False),
]
CompileMode = Annotated[
    Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    typer.Option(
        "--compile-mode",
        help="Mode of torch.compile. reduce-overhead: CUDA graphs, on one GPU; max-autotune: these, and kernels chosen "
        "by trial, in minutes; with -no-cudagraphs the kernels alone.",
    ),
]
Data = Annotated[
    Store | None,
    typer.Option(
        help="How log-mels are stored: recomputed each epoch (stream); or once, then on the device (resident), in the "
        "host's memory for a GPU (pinned) or on disk (mmap); auto: the fastest that fits, or stream where a split is "
        "read once and no log-mels are kept yet. As --set data.store.",
        show_default="auto",
    ),
]
SaveInterval = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        help="How often to save within an epoch, as 500steps or 300s; 2epochs saves at the end of every second epoch "
        "only.",
        show_default="600s, and each epoch's end",
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Processes that share the work: one for each GPU, or on the CPU's cores. The global batch is unchanged.",
        show_default="1, or as torchrun or srun started them",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where --devices starts its processes: this machine, or the Ray cluster at RAY_ADDRESS."),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        help="How often all processes are started again when one has died, to resume from the last save. Not after an "
        "error that you have to fix, or a signal.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=5, help="Seconds that a process waits for the others before it gives up.")
]
SkipBad = Annotated[
    int,
    typer.Option(
        "--skip-bad",
        min=0,
        help="How many clips may be left out because they cannot be read or decoded. All train clips are read once "
        "before the run to find them; they are named, and listed in result.json.",
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        "--holdout",
        help="Share of the train split held out as test, such as 0.2, where the set has no test split: whole groups, "
        "stratified by label, the same for every command and seed.",
        show_default="none",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")]
ResumeAnyway = Annotated[
    bool,
    typer.Option(
        "--resume-anyway",
        help="Resume even if settings, data or versions differ; config.json records the differences (resumed_with).",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already where this writes.")]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Write a trace of ten steps and a table of the slowest operators to OUT/profile."),
]
LogTo = Annotated[
    str,
    typer.Option(
        "--log-to",
        help="Where the numbers of each epoch go, beside OUT/log.jsonl: names between commas, of tensorboard, wandb, "
        "mlflow.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

TRAINED = "A run of train pretrain, distill or finetune; a model folder; base, which comes with this package; or hf://USER/NAME"
"""What has an encoder, in --help."""
Encoder = Annotated[str, typer.Option(help=f"{TRAINED}.")]


def with_flags(group: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command whose last parameter is `flags`, a dataclass of flags: each field becomes a flag."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "flags"]
        shared, kinds = inspect.signature(group).parameters, get_type_hints(group, include_extras=True)
        every = [*own, *(one.replace(annotation=kinds[name]) for name, one in shared.items())]
        every = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in every]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{one.name: given[one.name] for one in own}, flags=group(**{name: given[name] for name in shared}))

        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in every}
        return run

    return decorate


@dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """Flags of everything that is made from a preset."""

    preset: Preset = "recommended"
    config_file: ConfigFile = None
    settings: Sets = None
    seed: Seed = None
    device: Device = "auto"
    data: Data = None
    as_json: Json = False

    def config(self, stage: Stage, epochs: int | None = None, several: bool = False, **flags: Any) -> Config:
        """Preset, then the file of --config, then the flags of the stage, then `--set`, which wins. `several`: the
        command has other stages or methods too, so a file may be of another stage, and set what others read.
        """
        given = {"data.store": self.data, **flags}
        file = None if self.config_file is None else (self.config_file, several)
        return stage_config(stage, self.preset, self.settings, epochs, self.seed, file=file, **given)

    def named(self, stage: Stage) -> list[str]:
        """Dotted names of the settings that --set gives, and of those of --config that are not the preset's."""
        from unfused_fast.config import flatten

        names = list(pairs(self.settings))
        if self.config_file is not None:
            own = flatten(stage_config(stage, self.preset, None, None, None))
            given = flatten(self.config(stage, several=True))
            names += [name for name in own if own[name] != given[name]]
        return names


@dataclass(frozen=True, kw_only=True)
class StageFlags(ConfigFlags):
    """Flags of every trained stage."""

    resume: Resume = False
    resume_anyway: ResumeAnyway = False
    overwrite: Overwrite = False
    profile: Profile = False
    log_to: LogTo = "tensorboard"

    def options(self) -> Options:
        """How the stage runs: `run_options` of the flags here that it takes."""
        taken = inspect.signature(run_options).parameters
        return run_options(**{name: value for name, value in vars(self).items() if name in taken})


@dataclass(frozen=True, kw_only=True)
class EpochFlags(StageFlags):
    """Flags of the stages that train a network, on one process."""

    compile_: Compile = None
    compile_mode: CompileMode = "default"
    save_every: SaveInterval = None

    def config(self, stage: Stage, epochs: int | None = None, several: bool = False, **flags: Any) -> Config:
        """As ConfigFlags.config, with --save-every."""
        from unfused_fast.training import parse_save_every

        flags["train.save_every"] = parse_save_every(self.save_every)[1]
        return super().config(stage, epochs, several, **flags)


@dataclass(frozen=True, kw_only=True)
class ProcessFlags:
    """Flags of what several processes can do together."""

    device: Device = "auto"
    devices: Devices = None
    engine: Engine = "local"
    timeout: Timeout = TIMEOUT_SECONDS

    def start_processes(self, out: Path = Path(), restarts: int = 0, partitions: int | None = None) -> None:
        """Ends with the exit code of `--devices` processes, where they were started; returns where this one is to
        work. `out` and `restarts`: as of launcher.with_restarts. Raises UserError where they cannot share `partitions`.
        """
        if partitions is not None and self.devices is not None and place_of(os.environ) is None:
            from unfused_fast.distributed import Share

            Share(0, self.devices).of_partitions(partitions)
        start = start_devices if self.engine == "local" else start_on_ray
        code = start(self.devices, self.device, out, restarts)
        if code is not None:
            sys.exit(code)  # not typer.Exit: the processes have said how they ended


@dataclass(frozen=True, kw_only=True)
class SharedStageFlags(ProcessFlags, StageFlags):
    """Flags of train linear."""


@dataclass(frozen=True, kw_only=True)
class RanksFlags(ProcessFlags, EpochFlags):
    """Flags of the stages that several processes can train together."""

    max_restarts: MaxRestarts = 0
    skip_bad: SkipBad = 0


@dataclass(frozen=True, kw_only=True)
class PretrainFlags(RanksFlags):
    """Flags of commands that pre-train by any method."""

    method: Method = None

    def config(self, stage: Stage, epochs: int | None = None, several: bool = False, **flags: Any) -> Config:
        """As ConfigFlags.config, of the method where the stage is pre-training."""
        return super().config(stage, epochs, several, **flags, method=self.method)
