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
    Teacher,
    with_flags,
)
from unfused_fast.commands.options import refuse_unread, refuse_unread_by_heads
from unfused_fast.commands.output import next_command, open_set, print_result, show

if TYPE_CHECKING:
    from unfused_fast.config import Config, Stage

train_app = typer.Typer(no_args_is_help=True, help="Run the three stages of UnFuSeD, one by one or all.")

Out = Annotated[Path, typer.Option("--out", help="Run directory to write.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the train split.", show_default="preset's")]


@train_app.command("pretrain")
@with_flags(PretrainFlags)
def train_pretrain(shards: Shards, out: Out, epochs: Epochs = None, *, flags: PretrainFlags) -> None:
    """Stage 1: train an encoder without labels, by any --method.

    decar-v2, decar-v1: cluster the embeddings of all clips each epoch, and learn to predict each clip's cluster.

    simclr, moco: make two views of a clip more similar than views of different clips, which are in the same batch
    (simclr) or in a queue of earlier batches (moco).

    byol: from one view, predict the output of a moving-average network for the other view.

    barlow, delores-s: correlate each output between two views, and decorrelate different outputs; delores-m: moco with
    this as a second term.

    slicer: moco in both directions and for clusters; each clip is mixed with one that is far from it.

    swav: from one view, predict the prototype of the other; all prototypes are used equally.
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
    teacher: Teacher,
    out: Out,
    epochs: Epochs = None,
    *,
    flags: RanksFlags,
) -> None:
    """Stage 2: fine-tune without labels, by self-distillation.

    The clips are clustered by the teacher's features; the clusters are pseudo-labels. No label is read, only the number
    of classes, which is the number of clusters; --set pseudo.k=N sets another one.
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
            help=f"{TRAINED}; or a baseline: logmel, or random with model.channels (64) and model.dim (2048).",
            show_default=False,
        ),
    ],
    out: Out,
    holdout: Holdout = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the features.", show_default="preset's")] = None,
    *,
    flags: SharedStageFlags,
) -> None:
    """Stage 3: train linear heads on a frozen encoder.

    Validation selects the learning rate; test is scored once. Several processes compute the features together; one of
    them trains the heads.
    """
    flags.start_processes()
    from unfused_fast.stages import linear

    config = flags.config("linear", epochs)
    refuse_unread(flags.named("linear"), config, [encoder])
    refuse_unread_by_heads(flags.settings)
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
    encoder: Annotated[str, typer.Option(help=f"{TRAINED}; or random.", show_default=False)],
    out: Out,
    holdout: Holdout = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train clips.", show_default="preset's")] = None,
    *,
    flags: EpochFlags,
) -> None:
    """Stage 3 with the encoder: train encoder and linear head with labels.

    Validation selects the epoch; test is scored once. This is DECAR's Table 2, column Fine-tuned. To use a tenth of the
    labels: --set eval.label_fraction=0.1.
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
        int | None,
        typer.Option(
            help="Epochs of pre-training; where given, distillation has half as many.", show_default="preset's"
        ),
    ] = None,
    *,
    flags: PretrainFlags,
) -> None:
    """Run all three stages, and name the better of the two encoders.

    Both encoders and an untrained one are scored; validation decides.
    """
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
