"""What the commands of the command line share: settings from flags, output, errors and exit codes. Imports nothing
heavy.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from unfused_fast.commands.exits import INTERRUPTED, UsageError, end, end_of_usage
from unfused_fast.commands.launcher import start_devices
from unfused_fast.commands.ray_launcher import start_on_ray
from unfused_fast.config import BASELINES, PresetName, Stage, Store
from unfused_fast.errors import UserError, escaped
from unfused_fast.launch import place_of

if TYPE_CHECKING:
    from rich.console import Console

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
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="A config field, as section.field=value; repeatable (see: unfused-fast config)."),
]
Seed = Annotated[int, typer.Option(help="Seeds weights, order, views, clustering.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", help="torch.compile; on for CUDA unless said otherwise.", show_default=False
    ),
]
Data = Annotated[
    Store | None,
    typer.Option(
        help="How log-mels are stored: recomputed each epoch (stream); or once, then on the device (resident), in "
        "pinned memory or on disk (mmap); auto: the fastest that fits, or stream where a split is read once and no "
        "log-mels are kept yet. As --set data.store.",
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
        help="Processes that train together: one for each GPU, or on the CPU's cores. The global batch is unchanged.",
        show_default="1, or as torchrun or srun started them",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where --devices starts its processes: this machine, or the Ray cluster at RAY_ADDRESS."),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        "--accumulate",
        min=1,
        help="Parts in which a batch goes through the network, where it does not fit. As --set train.accumulate.",
        show_default="1",
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
        help="Clips that cannot be read or decoded and then count as silence, at most, of each process; they are named "
        "and listed in result.json. The run stops at the next one.",
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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing run in --out.")]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Write a trace of ten steps and a table of the slowest operators to OUT/profile."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def pairs(
    settings: list[str] | None,
    flag: str = "--set",
    wanted: str = "section.field=value, for example --set cluster.k=256 (see: unfused-fast config)",
) -> dict[str, str]:
    """`--set a.b=c` flags as a dictionary. Raises UserError for one without `=`."""
    values = {}
    for item in settings or []:
        name, sign, value = item.partition("=")
        if not sign:
            raise UserError(f"{flag} {item}: want {wanted}")
        values[name.strip()] = value.strip()
    return values


def stage_config(
    stage: Stage,
    preset_name: PresetName,
    settings: list[str] | None,
    epochs: int | None,
    seed: int,
    data: str | None = None,
    save_every: str | None = None,
    accumulate: int | None = None,
) -> Config:
    """Preset, then the flags of the stage, then `--set`, which wins."""
    from unfused_fast.config import preset, with_values
    from unfused_fast.training import parse_save_every

    epochs_field = "eval.epochs" if stage == "linear" else "train.epochs"
    flags: dict[str, Any] = {
        "train.seed": seed,
        epochs_field: epochs,
        "data.store": data,
        "train.save_every": parse_save_every(save_every)[1],
        "train.accumulate": accumulate,
    }
    flags = {name: value for name, value in flags.items() if value is not None}
    return with_values(preset(preset_name, stage), {**flags, **pairs(settings)})


def say_unread(settings: list[str] | None, encoder: str, read: str = "") -> None:
    """Says which `--set` fields of network and front end are not read, because a trained encoder brings its own;
    `read` is one that is.
    """
    from unfused_fast.console import console

    unread = [name for name in pairs(settings) if name.startswith(("model.", "frontend.")) and name != read]
    if unread and encoder not in BASELINES:
        names = ", ".join(unread)
        console.print(f"--set {names}: not read; {encoder} has its own network and front end", style="yellow")


def run_options(
    device: str,
    compile_: bool | None,
    resume: bool,
    overwrite: bool,
    profile: bool = False,
    save_every: str | None = None,
    resume_anyway: bool = False,
    timeout: float | None = None,
    skip_bad: int = 0,
) -> Options:
    """How a stage runs, from the flags; with a `timeout` together with the other processes, where there are some.

    Raises UserError for a device that is not there, or flags that exclude each other.
    """
    from unfused_fast.training import Options, join, parse_save_every, resolve_device

    if (resume or resume_anyway) and overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it; give one of them")
    place = None if timeout is None else place_of(os.environ)
    chosen = resolve_device(device if place is None else place.device(device))
    return Options(
        chosen,
        compile_,
        resume=resume or resume_anyway,
        resume_anyway=resume_anyway,
        overwrite=overwrite,
        save_every=parse_save_every(save_every)[0],
        profile=profile,
        ranks=join(place, chosen, timeout or 0.0),
        skip_bad=skip_bad,
    )


def start_processes(devices: int | None, device: str, engine: Literal["local", "ray"]) -> None:
    """Ends with the exit code of `--devices` processes, where they were started; returns where this one is to work."""
    code = start_devices(devices, device) if engine == "local" else start_on_ray(devices or 1, device)
    if code is not None:
        raise typer.Exit(code)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    in_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not in_unicode))


def stdout_console() -> Console:
    """For tables: as wide as the terminal, or 160 columns where there is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_result(result: dict[str, Any], as_json: bool, closing: str) -> None:
    """A stage's result: JSON, or its main numbers and what comes next."""
    if as_json:
        print_json(result)
        return
    shown = ("valid", "test", "loss", "k", "clips_per_second", "seconds", "run")
    numbers = (
        f"{name} {result[name]:g}" if isinstance(result[name], float) else f"{name} {result[name]}"
        for name in shown
        if result.get(name) is not None
    )
    print(escaped("  ".join(numbers)))
    print(escaped(closing))


def next_command(*arguments: object) -> str:
    """The line that says what to type next: quoted for a shell, and URLs without what may be secret."""
    from unfused_fast.shards.sources.location import display_name

    return f"next: unfused-fast {shlex.join(display_name(str(argument)) for argument in arguments)}"


@contextmanager
def bar(title: str, noted: str = "rejected") -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar on standard error that is told (done, total, how many are `noted`)."""
    from unfused_fast.console import progress_bar

    with progress_bar() as progress:
        task = progress.add_task(title, note="")

        def advance(done: int, total: int, count: int) -> None:
            progress.update(task, completed=done, total=total, note=f"{count} {noted}" if count else "")

        yield advance


def local_shards(shards: str) -> Path:
    """The folder of a set; what is behind a URL is copied to this machine first."""
    from unfused_fast.shards.sources.location import is_url

    if not is_url(shards):
        return Path(shards)
    from unfused_fast.console import console
    from unfused_fast.shards.packing.download import local_set

    with bar("downloading") as advance:
        return local_set(shards, say=console.print, progress=advance)


def run_app(app: typer.Typer | Callable[[], None]) -> NoReturn:
    """Runs the command line; ends with one sentence and an exit code instead of a traceback, unless --debug is
    given.
    """
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("UNFUSED_DEBUG"))
    sys.argv[1:] = [
        *(["--debug"] if "--debug" in sys.argv[1:] else []),
        *(item for item in sys.argv[1:] if item != "--debug"),
    ]
    if isinstance(sys.stdout, TextIOWrapper):  # characters that the terminal's encoding lacks are written as \uNNNN
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False) if isinstance(app, typer.Typer) else app()
    except UsageError as error:
        end_of_usage(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        end(error)
    else:
        if code == INTERRUPTED:  # so typer ends on Ctrl-C, without a word
            print("interrupted", file=sys.stderr)
        sys.exit(code or 0)
