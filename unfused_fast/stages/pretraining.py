"""Stage 1: pre-training without labels, by the method that the config selects (methods/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unfused_fast.config import Config
from unfused_fast.console import console, counted
from unfused_fast.data import find_unreadable, left_out_input
from unfused_fast.distributed import in_words
from unfused_fast.methods import Method, method_class
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import (
    Options,
    Run,
    Trainer,
    draw,
    plot_cluster_sizes,
    precision,
    resolve_batch_size,
    train_clips,
    train_loader,
)


def pretrain(config: Config, shards: ShardSet, out: Path, options: Options) -> dict[str, Any]:
    """Pre-trains on the train split of `shards` into run directory `out`; returns result.json's content.

    Raises UserError for errors that the user can fix, Interrupted after Ctrl-C (finished work is saved).
    """
    left_out = options.ranks.first(lambda: find_unreadable(shards, "train", options.skip_bad))
    with Run(out, "pretrain", config, shards, options, **left_out_input(left_out)) as run:
        if (finished := run.result()) is not None:
            return finished
        method, trainer = pretrainer(config, shards, options, run, left_out)
        trainer.start()
        clips, parameters = trainer.loader.clips, method.network.get_submodule("encoder").parameters()
        console.print(
            f"pretrain: {clips} clips, batch {trainer.batch_size}, {counted(config.train.epochs, 'epoch')}, "
            f"{sum(parameter.numel() for parameter in parameters):,} encoder parameters, on {options.device} in "
            f"{precision(config, options.device)}{in_words(options.ranks)}; {method.description()}"
        )
        longest = int(trainer.loader.samples[trainer.loader.clip_ids].max())
        if not config.views.same_crop and longest // config.frontend.hop_samples < config.crop_frames:
            console.print(
                f"views.same_crop = False, but no clip is longer than data.crop_seconds = {config.data.crop_seconds}: "
                "both crops of a clip are the same",
                style="yellow",
            )
        trained = trainer.fit()
        named = {"method": config.method.name, "encoder": config.model.encoder}
        facts = {**named, "clips": {"train": clips}, **method.facts()}
        result = run.finish({**facts, **trained})
        if options.ranks.leads and (sizes := method.cluster_sizes()) is not None:
            title = f"{run.out.name}, epoch {trained['last_epoch']}"
            draw(run.out / "clusters.png", plot_cluster_sizes, sizes.tolist(), title)
        return result


def pretrainer(
    config: Config, shards: ShardSet, options: Options, run: Run, left_out: Sequence[int] = ()
) -> tuple[Method, Trainer]:
    """The method, and a trainer for it on the train split without clips `left_out`. Raises UserError where the config
    does not suit the set.
    """
    clips = train_clips(shards)
    stream = train_loader(config, shards, options, resolve_batch_size(config, clips), left_out)
    torch.manual_seed(config.train.seed)
    method = method_class(config)(config, clips, shards.first_id("train"), options.device, options.ranks, left_out)
    return method, Trainer(method, stream, config, options, run)
