"""`unfused-fast train ...`: the three stages, one by one or all; part of the command line in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfused_fast.commands.flags import (
    Accumulate,
    Compile,
    Data,
    Device,
    Devices,
    Engine,
    Holdout,
    Json,
    Overwrite,
    Preset,
    Profile,
    Resume,
    ResumeAnyway,
    SaveInterval,
    Seed,
    Sets,
    Shards,
    SkipBad,
    Timeout,
    local_shards,
    next_command,
    print_json,
    print_result,
    run_options,
    say_unread,
    stage_config,
    start_processes,
    stdout_console,
)
from unfused_fast.launch import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from unfused_fast.config import Config, Stage

train_app = typer.Typer(no_args_is_help=True, help="Train or evaluate: the three stages of UnFuSeD, one by one or all.")

Out = Annotated[Path, typer.Option("--out", help="Run directory to make.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the train split.", show_default="preset's")]


@train_app.command("pretrain")
def train_pretrain(
    shards: Shards,
    out: Out,
    preset: Preset = "recommended",
    settings: Sets = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = None,
    engine: Engine = "local",
    data: Data = None,
    compile_: Compile = None,
    accumulate: Accumulate = None,
    save_every: SaveInterval = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    skip_bad: SkipBad = 0,
    resume: Resume = False,
    resume_anyway: ResumeAnyway = False,
    overwrite: Overwrite = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Stage 1: cluster a memory bank each epoch, learn to predict the clusters.

    DECAR-v2, or DECAR-v1 by --preset decar-v1. Reads no labels.
    """
    start_processes(devices, device, engine)
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import pretrain

    config = stage_config("pretrain", preset, settings, epochs, seed, data, save_every, accumulate)
    options = run_options(device, compile_, resume, overwrite, profile, save_every, resume_anyway, timeout, skip_bad)
    with options.ranks:
        result = pretrain(config, open_shards(local_shards(shards)), out, options)
    if options.ranks.leads:
        print_result(result, as_json, next_command("train", "distill", shards, "--teacher", out, "--out", "RUN2"))


@train_app.command("distill")
def train_distill(
    shards: Shards,
    teacher: Annotated[Path, typer.Option(help="Run directory of train pretrain.", show_default=False)],
    out: Out,
    preset: Preset = "recommended",
    settings: Sets = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = None,
    engine: Engine = "local",
    data: Data = None,
    compile_: Compile = None,
    accumulate: Accumulate = None,
    save_every: SaveInterval = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    skip_bad: SkipBad = 0,
    resume: Resume = False,
    resume_anyway: ResumeAnyway = False,
    overwrite: Overwrite = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Stage 2: pseudo-labels from the frozen teacher guide the self-distillation of a new encoder; reads no labels."""
    start_processes(devices, device, engine)
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import distill

    config = stage_config("distill", preset, settings, epochs, seed, data, save_every, accumulate)
    options = run_options(device, compile_, resume, overwrite, profile, save_every, resume_anyway, timeout, skip_bad)
    with options.ranks:
        result = distill(config, open_shards(local_shards(shards)), teacher, out, options)
    if options.ranks.leads:
        print_result(result, as_json, next_command("train", "linear", shards, "--encoder", out, "--out", "RUN3"))


@train_app.command("linear")
def train_linear(
    shards: Shards,
    encoder: Annotated[
        str,
        typer.Option(
            help="Run directory of pretrain, distill or finetune, or a baseline: random, logmel.", show_default=False
        ),
    ],
    out: Out,
    holdout: Holdout = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the features.", show_default="preset's")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    data: Data = None,
    resume: Resume = False,
    resume_anyway: ResumeAnyway = False,
    overwrite: Overwrite = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Stage 3: linear heads on features of the frozen encoder; validation picks one, test is read once."""
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import linear

    config = stage_config("linear", preset, settings, epochs, seed, data)
    say_unread(settings, encoder)
    result = linear(
        config,
        open_shards(local_shards(shards)),
        encoder,
        out,
        run_options(device, None, resume, overwrite, profile, resume_anyway=resume_anyway),
        holdout,
    )
    print_result(result, as_json, f"confusion matrix: {out / 'confusion.png'}")


@train_app.command("finetune")
def train_finetune(
    shards: Shards,
    encoder: Annotated[
        str,
        typer.Option(
            help="Run directory of pretrain, distill or finetune, a model folder, or random.", show_default=False
        ),
    ],
    out: Out,
    holdout: Holdout = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train clips.", show_default="preset's")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    data: Data = None,
    compile_: Compile = None,
    save_every: SaveInterval = None,
    resume: Resume = False,
    resume_anyway: ResumeAnyway = False,
    overwrite: Overwrite = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Stage 3, end to end: encoder and linear head learn the labels; validation picks the epoch, test is read once.

    DECAR's Table 2, column Fine-tuned. Few labels: --set eval.label_fraction=0.1.
    """
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import finetune

    config = stage_config("finetune", preset, settings, epochs, seed, data, save_every)
    say_unread(settings, encoder, read="model.dropout")
    result = finetune(
        config,
        open_shards(local_shards(shards)),
        encoder,
        out,
        run_options(device, compile_, resume, overwrite, profile, save_every, resume_anyway),
        holdout,
    )
    print_result(
        result, as_json, f"epoch {result['chosen_epoch']} was chosen by {result['select']}; its encoder: {out}"
    )


@train_app.command("all")
def train_everything(
    shards: Shards,
    out: Out,
    target: Annotated[
        str | None, typer.Option(help="Labelled shard set for stages 2 and 3.", show_default="SHARDS")
    ] = None,
    holdout: Holdout = None,
    preset: Preset = "recommended",
    settings: Sets = None,
    epochs: Annotated[
        int | None, typer.Option(help="Pre-training epochs; distillation runs half as many.", show_default="preset's")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = None,
    engine: Engine = "local",
    data: Data = None,
    compile_: Compile = None,
    accumulate: Accumulate = None,
    save_every: SaveInterval = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    skip_bad: SkipBad = 0,
    resume: Resume = False,
    resume_anyway: ResumeAnyway = False,
    overwrite: Overwrite = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """All three stages; scores both encoders and a random one on validation and says which to keep."""
    start_processes(devices, device, engine)
    from unfused_fast.evaluation import held_out_text, terminal_table
    from unfused_fast.shards.sets.table import open_shards
    from unfused_fast.stages import train_all

    half = None if epochs is None else max(1, epochs // 2)
    stages: dict[Stage, int | None] = {"pretrain": epochs, "distill": half, "linear": None}
    configs: dict[Stage, Config] = {
        stage: stage_config(stage, preset, settings, count, seed, data, save_every, accumulate)
        for stage, count in stages.items()
    }
    options = run_options(device, compile_, resume, overwrite, profile, save_every, resume_anyway, timeout, skip_bad)
    opened, labelled = (open_shards(local_shards(given)) for given in (shards, target or shards))
    with options.ranks:
        verdict = train_all(configs, opened, labelled, out, options, holdout)
    if not options.ranks.leads:
        return
    if as_json:
        print_json(verdict)
        return
    rows = [
        [name, f"{valid:.3f}", "" if (test := verdict["test"][name]) is None else f"{test:.3f}"]
        for name, valid in verdict["valid"].items()
    ]
    stdout_console().print(
        terminal_table(
            f"linear evaluation on {verdict['task']}{held_out_text(holdout)}", ["encoder", "valid", "test"], rows
        )
    )
    print(f"keep {verdict['keep']}: {verdict['encoder']}")
    if not verdict["beats_random"]:
        print("but it does not beat a random encoder on validation: the set may be too small, or training too short")
