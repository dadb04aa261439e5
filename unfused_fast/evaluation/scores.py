"""Scores of one encoder on one task, kept in a file: validation by itself, so that a search need not read the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfused_fast.config import Config, flatten
from unfused_fast.errors import UserError
from unfused_fast.evaluation.measure import Method, Plan, measure
from unfused_fast.evaluation.run_pool import PooledRun
from unfused_fast.evaluation.run_store import read_object, settings_of
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import metric_of
from unfused_fast.training import Options, quietly, write_json

ENCODER = ("model.encoder", "model.dim", "model.channels", "model.fc_layers")
"""Fields that an untrained encoder depends on; a run has its own."""


def score_once(
    out: Path,
    config: Config,
    task: ShardSet,
    encoder: PooledRun | str,
    options: Options,
    *,
    test: bool = False,
    head: Method = "linear",
    epoch: int | None = None,
) -> dict[str, float]:
    """`valid`, and `test` only where asked for, of a frozen encoder, a run or a baseline, kept in OUT/scores.

    `epoch`: of a run that is paused after it.
    """
    seed, baseline = config.train.seed, isinstance(encoder, str)
    read = ("eval.", "frontend.", *(ENCODER if baseline else ()))
    settings = {name: value for name, value in settings_of(flatten(config), "linear").items() if name.startswith(read)}
    name = encoder if isinstance(encoder, str) else encoder.path.name
    run = encoder if isinstance(encoder, str) else str(encoder.path)
    key = f"{name}-{config.model.channels}" if baseline else name.rpartition("-")[2]
    tail = ("" if head == "linear" else f"-{head}") + ("" if epoch is None else f"-epoch{epoch}")
    path = out / "scores" / f"{task.name}-{key}-{seed}{tail}.json"
    facts = {"task": task.name, "encoder": name, "seed": seed, "head": head, "epoch": epoch, "settings": settings}
    found: dict[str, Any] = read_object(path) if path.exists() else {}
    if any(name in found and found[name] != value for name, value in facts.items()):
        raise UserError(f"{path}: scores with other settings of the heads; use another --out, or delete {path.parent}")
    wanted = ["valid", "test"] if test else ["valid"]
    if not {*wanted, *facts} <= found.keys():
        if not {*wanted} <= found.keys():
            with quietly():
                clips, (measured,) = measure(config, task, {run: [run]}, Plan(methods=(head,)), options.device)
            facts["metric"] = "mAP" if clips.multi_label else "accuracy"
            found["valid"] = measured.valid
            if test:
                found["test"] = metric_of(clips, measured.rows, measured.scores)
        found = {"metric": "accuracy", **found, **facts}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return {split: found[split] for split in wanted}
