"""`unfused-fast train ...`: the three stages, one by one or all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unfused_fast.commands.flags import (
    TRAINED,
    EpochFlags,
    Holdout,
    PretrainFlags,
    RanksFlags,
    Shards,
    SharedStageFlags,
    with_flags,
)
from unfused_fast.commands.options import refuse_unread
from unfused_fast.commands.output import next_command, open_set, print_result, show

if TYPE_CHECKING:
    from unfused_fast.config import Config, Stage

train_app = typer.Typer(no_args_is_help=True, help="Train or evaluate: the three stages of UnFuSeD, one by one or all.")

Out = Annotated[Path, typer.Option("--out", help="Run directory to make.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the train split.", show_default="preset's")]


@train_app.command("pretrain")
@with_flags(PretrainFlags)
def train_pretrain(shards: Shards, out: Out, epochs: Epochs = None, *, flags: PretrainFlags) -> None:
    """Stage 1: learn from the clips alone, by any --method; reads no labels.

    decar-v2, decar-v1: cluster a memory bank each epoch, learn to predict the clusters.

    simclr, moco: tell the two views of a clip from other clips, of the batch or of a queue.

    byol: predict from one view of a clip what a slowly following network makes of the other.

    barlow, delores-s: let the outputs of two views correlate dimension by dimension; delores-m: moco, and that too.

    slicer: moco in both directions, for clusters too, and clips mixed with those that sound least alike.

    swav: predict from one view the prototype of the other, with all prototypes used equally.
    """
    config = flags.config("pretrain", epochs)
    flags.start_processes(out, flags.max_restarts, config.data.partitions)
    from unfused_fast.stages import pretrain

    options = flags.options()
    with options.ranks:
        opened = open_set(shards)
        result = pretrain(config, opened, out, options)
    if options.ranks.leads:
        words: list[object] = ["explore", shards, "--encoder", out, "--out", "PAGE", "--serve"]
        if len(opened.manifest.label_names) > 1:  # their number is K of stage 2
            words = ["train", "distill", shards, "--teacher", out, "--out", "RUN2"]
        print_result(result, flags.as_json, next_command(*words))


@train_app.command("distill")
@with_flags(RanksFlags)
def train_distill(
    shards: Shards,
    teacher: Annotated[str, typer.Option(help="A run of train pretrain, or as --encoder.", show_default=False)],
    out: Out,
    epochs: Epochs = None,
    *,
    flags: RanksFlags,
) -> None:
    """Stage 2: pseudo-labels from the frozen teacher guide the self-distillation of a new encoder.

    It reads no labels, only how many classes there are; --set pseudo.k=N gives the number of clusters instead.
    """
    config = flags.config("distill", epochs)
    flags.start_processes(out, flags.max_restarts, config.data.partitions)
    from unfused_fast.stages import distill

    options = flags.options()
    with options.ranks:
        result = distill(config, open_set(shards), teacher, out, options)
    if options.ranks.leads:
        closing = next_command("train", "linear", shards, "--encoder", out, "--out", "RUN3")
        print_result(result, flags.as_json, closing)


@train_app.command("linear")
@with_flags(SharedStageFlags)
def train_linear(
    shards: Shards,
    encoder: Annotated[
        str,
        typer.Option(
            help=f"{TRAINED}, or a baseline: logmel, or random, of width model.channels (64) and model.dim (2048).",
            show_default=False,
        ),
    ],
    out: Out,
    holdout: Holdout = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the features.", show_default="preset's")] = None,
    *,
    flags: SharedStageFlags,
) -> None:
    """Stage 3: linear heads on features of the frozen encoder; validation picks one, test is read once.

    Several processes share the features; the heads are trained by one.
    """
    flags.start_processes()
    from unfused_fast.stages import linear

    config = flags.config("linear", epochs)
    refuse_unread(flags.named("linear"), config, [encoder])
    options = flags.options()
    with options.ranks:
        result = linear(config, open_set(shards), encoder, out, options, holdout)
    if options.ranks.leads:
        picture = out / "confusion.png"
        print_result(result, flags.as_json, f"confusion matrix: {picture}" if picture.exists() else "")


@train_app.command("finetune")
@with_flags(EpochFlags)
def train_finetune(
    shards: Shards,
    encoder: Annotated[str, typer.Option(help=f"{TRAINED}, or random.", show_default=False)],
    out: Out,
    holdout: Holdout = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train clips.", show_default="preset's")] = None,
    *,
    flags: EpochFlags,
) -> None:
    """Stage 3, end to end: encoder and linear head learn the labels; validation picks the epoch, test is read once.

    DECAR's Table 2, column Fine-tuned. Few labels: --set eval.label_fraction=0.1.
    """
    from unfused_fast.stages import finetune

    config = flags.config("finetune", epochs)
    refuse_unread(flags.named("finetune"), config, [encoder], read="model.dropout")
    result = finetune(config, open_set(shards), encoder, out, flags.options(), holdout)
    chosen = f"epoch {result['chosen_epoch']} was chosen (eval.select = {result['select']}); its encoder: {out}"
    print_result(result, flags.as_json, chosen)


@train_app.command("all")
@with_flags(PretrainFlags)
def train_everything(
    shards: Shards,
    out: Out,
    target: Annotated[
        str | None, typer.Option(help="Labelled shard set for stages 2 and 3.", show_default="SHARDS")
    ] = None,
    holdout: Holdout = None,
    epochs: Annotated[
        int | None, typer.Option(help="Pre-training epochs; distillation runs half as many.", show_default="preset's")
    ] = None,
    *,
    flags: PretrainFlags,
) -> None:
    """All three stages; scores both encoders and a random one on validation and says which to keep."""
    half = None if epochs is None else max(1, epochs // 2)
    stages: dict[Stage, int | None] = {"pretrain": epochs, "distill": half, "linear": None}
    configs: dict[Stage, Config] = {stage: flags.config(stage, count, several=True) for stage, count in stages.items()}
    flags.start_processes(out, flags.max_restarts, configs["pretrain"].data.partitions)
    from unfused_fast.evaluation import held_out_text
    from unfused_fast.stages import train_all

    options = flags.options()
    with options.ranks:
        opened, labelled = open_set(shards), open_set(target or shards)
        verdict = train_all(configs, opened, labelled, out, options, holdout)
    if not options.ranks.leads:
        return
    title = f"linear evaluation on {verdict['task']}{held_out_text(holdout)}"
    rows = [
        [name, f"{valid:.3f}", "" if (test := verdict["test"][name]) is None else f"{test:.3f}"]
        for name, valid in verdict["valid"].items()
    ]
    show(verdict, flags.as_json, [(title, ["encoder", "valid", "test"], rows)])
