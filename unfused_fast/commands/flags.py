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
        help="A shard set that `unfused-fast shard` made. A set at a URL (s3://, gs://, https://) is first copied to "
        "UNFUSED_CACHE or ~/.cache/unfused-fast; the copy is used again while the set does not change.",
        show_default=False,
    ),
]
Preset = Annotated[
    PresetName,
    typer.Option(help="The set of values to start from (see: unfused-fast config --preset NAME --diff recommended)."),
]
Method = Annotated[
    MethodName | None,
    typer.Option(
        help="How to learn without labels. Each method has its own settings: `unfused-fast config --method NAME`.",
        show_default="decar-v2",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, such as cluster.k=256. Repeatable (see: unfused-fast config)."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Read settings from a file: what `unfused-fast config --yaml` prints, or the config.json of a run. Other "
        "flags and --set take precedence.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Random seed of weights, order, views and clustering.", show_default="0")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", help="Whether to use torch.compile; by default only on one GPU.", show_default=False
    ),
]
CompileMode = Annotated[
    Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    typer.Option(
        "--compile-mode",
        help="Mode of torch.compile. reduce-overhead uses CUDA graphs, on one GPU. max-autotune also tries kernels and "
        "takes the fastest, which takes minutes; with -no-cudagraphs it uses no CUDA graphs.",
    ),
]
Data = Annotated[
    Store | None,
    typer.Option(
        help="Where log-mels come from. stream: computed anew each epoch. The others compute them once, and keep them "
        "in the device's memory (resident), in the host's memory for a GPU (pinned) or on disk (mmap). auto: the "
        "fastest that fits, or stream where a split is read once and has no cache yet. Same as --set data.store.",
        show_default="auto",
    ),
]
SaveInterval = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        help="How often to save within an epoch: 500steps or 300s. 2epochs saves only at the end of every second "
        "epoch.",
        show_default="600s, and each epoch's end",
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Number of processes that share the work: one for each GPU, or on the cores of a CPU. The batch size is "
        "that of all processes together.",
        show_default="1, or as torchrun or srun started them",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where --devices starts processes: on this machine, or on the Ray cluster at RAY_ADDRESS."),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        help="How many times to restart all processes from the last save when one has died. There is no restart after "
        "a signal, or after an error that you have to fix.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=5, help="Seconds that a process waits for the others before it ends with an error."),
]
SkipBad = Annotated[
    int,
    typer.Option(
        "--skip-bad",
        min=0,
        help="Leave out at most this many train clips that cannot be read or decoded. To find them, all train clips "
        "are read once before the run; they are named, and listed in result.json.",
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        "--holdout",
        help="For a set without a test split: the share of the train split to hold out as test, such as 0.2. Whole "
        "groups are held out, stratified by label; they are the same for every command and seed.",
        show_default="none",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out; start it if there is none.")]
ResumeAnyway = Annotated[
    bool,
    typer.Option(
        "--resume-anyway",
        help="Resume even if settings, data or versions differ; config.json records the differences (resumed_with).",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already at the output path.")]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Write a trace of ten steps and a table of the slowest operators to OUT/profile."),
]
LogTo = Annotated[
    str,
    typer.Option(
        "--log-to",
        help="Where to send the numbers of each epoch, besides OUT/log.jsonl: tensorboard, wandb, mlflow, separated by "
        "commas.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

TRAINED = (
    "A run of train pretrain, distill or finetune; a model folder; base, the encoder in this package; or hf://USER/NAME"
)
"""What has an encoder, in --help."""
Encoder = Annotated[str, typer.Option(help=f"{TRAINED}.")]
Teacher = Annotated[
    str,
    typer.Option(
        help="A run of train pretrain, or another encoder: base, a model folder, hf://USER/NAME.", show_default=False
    ),
]


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
