"""`compare`: methods that pre-train on the same clips, each encoder evaluated on every task, one table.

OUT/runs/                                 a run pool, shared with `ablate` and `lape`
OUT/tasks/<task>/<method>-<seed>/         the evaluation of one encoder, as of `evaluate`
OUT/runs.parquet                          the runs and their scores (run_store.py)
OUT/compare.json, compare.md              the tables, written again after each encoder
OUT/compare.png                           accuracy against training time, at the end

After a stop at any moment the same command continues; one with more methods, tasks or seeds adds to what is
there. The tables hold what the last command named.
Several ranks train and evaluate each encoder together; rank 0 writes the tables.
Ours; the table it is made for is UnFuSeD's Table 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfused_fast.config import BASELINES, Config, Task, flatten, with_values
from unfused_fast.console import console
from unfused_fast.distributed import RankLost
from unfused_fast.errors import UserError
from unfused_fast.evaluation.compare_report import SPLITS, TITLES, comparison_sentences, comparison_tables, write_scores
from unfused_fast.evaluation.comparison import evaluate_once
from unfused_fast.evaluation.lape_data import task_of
from unfused_fast.evaluation.measure import Plan, measurable
from unfused_fast.evaluation.report import claim, outcome, spread, write_report
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.evaluation.run_store import write_runs
from unfused_fast.shards.sets.table import ShardSet


def common_values(linear: Config) -> dict[str, Any]:
    """What is the same for all methods, from the config of the linear heads: front end, encoder, crop and epochs.

    Ours: methods differ in loss, heads, augmentation, optimiser and batch; without the rest a table would compare
    encoders, and hours of audio, instead. Raises UserError for an early stop.
    """
    if linear.train.patience:
        raise UserError(f"train.patience = {linear.train.patience}: compared methods train equally long; leave it at 0")
    names = ("data.crop_seconds", "train.epochs", "model.encoder", "model.dim", "model.channels", "model.fc_layers")
    wanted = ("frontend.", *names, "model.pool", "train.patience")
    return {name: value for name, value in flatten(linear).items() if name.startswith(wanted)}


@dataclass(frozen=True)
class LabelledTask:
    """A labelled set, and how encoders are measured on it."""

    name: str
    shards: ShardSet
    plan: Plan
    metric: str = "accuracy"
    """Or mAP, of several labels a clip."""
    paper: Task | None = None
    """Of the papers, where it is one of theirs."""


def tasks_of(
    sets: Sequence[ShardSet], linear: Config, seeds: Sequence[int], holdout: float | None
) -> list[LabelledTask]:
    """The sets as tasks: by folds where the papers do so, with `holdout` where a set has no test split.

    Raises UserError for one that cannot be measured, and for two of one name, before anything is trained for hours.
    """
    tasks = dict[str, LabelledTask]()
    for shards in sets:
        paper = task_of(shards)
        by_folds = paper is not None and paper.by_folds
        tested = by_folds or "test" in shards.manifest.splits
        plan = Plan(by_folds=by_folds, holdout=None if tested else holdout, read_again=True)
        clips = measurable(linear, shards, plan, seeds)
        metric = "mAP" if clips.multi_label else "accuracy"
        task = LabelledTask(shards.name, shards, plan, metric, paper)
        if tasks.setdefault(task.name, task) is not task:
            raise UserError(
                f"--tasks {shards.directory}: {tasks[task.name].shards.directory} has the name {task.name} too; a task "
                "is named as its folder, so rename one, or give each once"
            )
    return list(tasks.values())


def compare(
    configs: Mapping[str, Config],
    linear: Config,
    shards: ShardSet,
    sets: Sequence[ShardSet],
    out: Path,
    seeds: int,
    pool: RunPool,
) -> dict[str, Any]:
    """Runs every method with seeds S, S + 1, ... of the linear heads' `train.seed` S, and the baselines beside them;
    returns the content of compare.json.

    `configs`: of each method, with the `common_values` of `linear`. A method that ends in a UserError, such as one that
    diverges, is a row of the table with its reason. Raises UserError for an `out` or a task that cannot be used,
    Interrupted after Ctrl-C.
    """
    every = range(linear.train.seed, linear.train.seed + seeds)
    ranks, found = pool.options.ranks, list[dict[str, Any]]()
    tasks = ranks.every(lambda: tasks_of(sets, linear, every, pool.holdout))
    ranks.first(lambda: claim(out, "a comparison"))
    for seed, name in itertools.product(every, (*BASELINES, *configs)):
        found.append(encoder_scores(name, configs.get(name), linear, shards, tasks, out, seed, pool))
        summary = summary_of((*BASELINES, *configs), found, tasks, shards, linear, out, pool.holdout)
        summary["not_shown"] = not_shown(out, (*BASELINES, *configs), tasks, every)
        if ranks.leads:
            write_report(out, "compare", summary, comparison_tables(summary), comparison_sentences(summary))
            write_runs(pool.directory)
    if ranks.leads:
        write_scores(out, summary)
    return summary


def not_shown(out: Path, encoders: Sequence[str], tasks: Sequence[LabelledTask], seeds: Sequence[int]) -> list[str]:
    """`TASK/METHOD-SEED` of the evaluations in OUT of earlier commands that named more than these."""
    shown = {f"{task.name}/{name}-{seed}" for task in tasks for name in encoders for seed in seeds}
    found = {path.parent for path in out.glob("tasks/*/*/evaluation.json")}
    parts = ((folder, *folder.name.rpartition("-")) for folder in found)
    of_encoders = (folder for folder, name, _, seed in parts if name in TITLES and seed.isdecimal())
    return sorted({f"{folder.parent.name}/{folder.name}" for folder in of_encoders} - shown)


def encoder_scores(
    name: str,
    config: Config | None,
    linear: Config,
    shards: ShardSet,
    tasks: Sequence[LabelledTask],
    out: Path,
    seed: int,
    pool: RunPool,
) -> dict[str, Any]:
    """Pre-trains a method with a seed, or takes the baseline where there is no config, and evaluates the encoder: task
    -> `valid` and `test`; where that ends in a UserError, the reason.
    """
    console.print(f"{TITLES[name]}, seed {seed}")
    line, scores = {"encoder": name, "seed": seed}, dict[str, dict[str, float]]()
    try:
        run = None if config is None else pool.pretrain(with_values(config, {"train.seed": seed}), shards)
        heads, encoder = with_values(linear, {"train.seed": seed}), name if run is None else str(run.path)
        for task in tasks:
            folder = out / "tasks" / task.name / f"{name}-{seed}"
            (row,) = evaluate_once(heads, task.shards, {name: [encoder]}, task.plan, folder, pool.options)["rows"]
            scores[task.name] = {split: row[split] for split in SPLITS}
    except RankLost:
        raise
    except UserError as error:
        console.print(f"{TITLES[name]}, seed {seed}: {error}", style="yellow")
        return {**line, "reason": str(error)}
    if run is None:
        return {**line, "scores": scores, "seconds": None, "run": None}
    # the first run on a set computes its log-mels, which is no method's own work
    seconds = round(run.result["seconds"] - run.result["start_seconds"], 2)
    return {**line, "scores": scores, "seconds": seconds, "run": str(run.path)}


def summary_of(
    encoders: Sequence[str],
    found: Sequence[dict[str, Any]],
    tasks: Sequence[LabelledTask],
    shards: ShardSet,
    linear: Config,
    out: Path,
    holdout: float | None,
) -> dict[str, Any]:
    """The outcome of each encoder and seed -> the content of compare.json; shares of 1, the papers' in per cent.

    `mean` is over seeds of the mean over tasks; its error is that of these means.
    """
    rows = []
    for name in encoders:
        lines = [line for line in found if line["encoder"] == name]
        done = [line for line in lines if "reason" not in line]
        scores = {task.name: [line["scores"][task.name] for line in done] for task in tasks}
        means = [[float(np.mean([of[split] for of in line["scores"].values()])) for line in done] for split in SPLITS]
        rows.append(
            {
                "encoder": name,
                "title": TITLES[name],
                **outcome(lines),
                "mean": dict(zip(SPLITS, map(spread, means), strict=True)),
                "tasks": {
                    task: {split: spread([score[split] for score in of]) for split in SPLITS}
                    for task, of in scores.items()
                },
                "seconds": spread([line["seconds"] for line in done if line["seconds"] is not None]),
                "runs": [line["run"] for line in done if line["run"] is not None],
            }
        )
    measured = {
        task.name: {
            "metric": task.metric,
            "holdout": task.plan.holdout,
            "paper": None if task.paper is None or task.metric == "mAP" else dict(task.paper.results),
        }
        for task in tasks
    }
    facts = {"seen": seen(shards, linear.train.epochs), "holdout": holdout, "select": linear.eval.select}
    return {**facts, "tasks": measured, "rows": rows, "run": str(out)}


def seen(shards: ShardSet, epochs: int) -> dict[str, Any]:
    """What each method sees of the set it pre-trains on."""
    return {"set": shards.name, "clips": shards.manifest.splits["train"].clips, "epochs": epochs}
