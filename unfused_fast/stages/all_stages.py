"""`train all`: the three stages on one set, a comparison of the stage-1 and stage-2 encoders, and which one to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfused_fast.config import Config, Stage, with_values
from unfused_fast.console import console
from unfused_fast.methods import method_class
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.distillation import distill
from unfused_fast.stages.linear_heads import linear, linear_round
from unfused_fast.stages.pretraining import pretrain
from unfused_fast.stages.teacher import refuse_other_encoder, sizes_of
from unfused_fast.training import Options, write_json


def train_all(
    configs: dict[Stage, Config],
    shards: ShardSet,
    target: ShardSet,
    out: Path,
    options: Options,
    holdout: float | None = None,
) -> dict[str, Any]:
    """Pre-trains on `shards`, distils on `target`, evaluates both encoders and a random one on `target`.

    The choice uses validation accuracy only; test is only reported. Ours: on a small target set stage 2 may not improve
    the encoder, which a user should see before keeping it.
    """
    linear_round(configs["linear"], target, holdout)  # checks of later stages, before stage 1 runs for hours
    distilled = configs["distill"]
    if distilled.distill.init == "teacher":
        distilled = with_values(distilled, sizes_of(configs["pretrain"], distilled))
        refuse_other_encoder(distilled, configs["pretrain"], "stage 1")
    pretrain(configs["pretrain"], shards, out / "pretrain", options)
    distill(distilled, target, out / "pretrain", out / "distill", options)
    encoders = {
        "random": "random",
        f"stage 1 ({method_class(configs['pretrain']).title})": str(out / "pretrain"),
        "stage 2 (UnFuSeD)": str(out / "distill"),
    }
    results = {
        name: linear(configs["linear"], target, encoder, out / f"linear-{encoder.rsplit('/', 1)[-1]}", options, holdout)
        for name, encoder in encoders.items()
    }
    keep = max((name for name in results if name != "random"), key=lambda name: float(results[name]["valid"]))
    verdict = {
        "stage": "all",
        "task": target.name,
        "valid": {name: result["valid"] for name, result in results.items()},
        "test": {name: result["test"] for name, result in results.items()},
        "held_out": results[keep].get("held_out"),
        "keep": keep,
        "encoder": encoders[keep],
        "beats_random": results[keep]["valid"] > results["random"]["valid"],
        "run": str(out),
    }
    if options.ranks.leads:
        write_json(out / "verdict.json", verdict)
    doubt = "" if verdict["beats_random"] else ", though it does not beat a random encoder on validation"
    console.print(f"all: keep {keep}: {encoders[keep]}{doubt}")
    return verdict
