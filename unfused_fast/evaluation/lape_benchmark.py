"""The LAPE benchmark: stages 2 and 3, and other methods, on every task whose data are present, beside Table 1.

OUT/shards/<task>/      sets packed from published layouts
OUT/runs/               a run pool: distilled encoders, one per task and seed; methods' encoders, one per seed
OUT/tasks/<task>/full/  the evaluation of a task's encoders, as of `evaluate`; or student3/; or of a method, moco-0/
OUT/lape.json, lape.md  the table

After a stop at any moment the same command continues: finished work is not repeated. Several ranks train and evaluate
each task together; rank 0 packs the sets and writes the tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfused_fast.config import Config, Task, flatten, with_values
from unfused_fast.console import console
from unfused_fast.distributed import RankLost
from unfused_fast.errors import UserError
from unfused_fast.evaluation.compare import LabelledTask, encoder_scores, seen
from unfused_fast.evaluation.compare_report import TITLES, seen_text
from unfused_fast.evaluation.comparison import evaluate_once
from unfused_fast.evaluation.lape_data import find, shards_of, where_to_get
from unfused_fast.evaluation.measure import Plan, measurable, refuse_label_fraction
from unfused_fast.evaluation.report import (
    TextTable,
    beside,
    claim,
    percent,
    percent_span,
    spread,
    spread_text,
    trouble,
    write_report,
    writing,
)
from unfused_fast.evaluation.run_pool import PooledRun, RunPool
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.stages import load_encoder
from unfused_fast.training import Options, config_digest, encoder_digest, encoder_place


@dataclass(frozen=True)
class LapePlan:
    """The protocol of every task."""

    distill: Config
    linear: Config
    measured: Plan
    """With its largest share of labels it is compared with the paper; `holdout` is for a set without a test split."""
    seeds: int = 1
    crops_of_tasks: bool = True
    """Stage 2 uses each task's crop length instead of the config's. Source: the authors' code has a
    window for each task.
    """
    methods: Mapping[str, Config] = field(default_factory=dict)
    """Other methods: how each pre-trains, on"""
    pretrain_on: ShardSet | None = None
    """this set. Their encoders are evaluated whole, as in the paper, with the largest share of labels."""

    @property
    def seen(self) -> dict[str, Any] | None:
        """What each method sees of it."""
        epochs = {config.train.epochs for config in self.methods.values()}
        return None if self.pretrain_on is None else seen(self.pretrain_on, *epochs)


def lape(
    data: Path,
    teacher: str | Path,
    out: Path,
    tasks: Sequence[Task],
    plan: LapePlan,
    options: Options,
    workers: int | None = None,
) -> dict[str, Any]:
    """Runs the tasks; returns the content of lape.json. A task that is missing or fails is reported, and the others
    continue.

    Raises UserError for a `data`, teacher or `out` that cannot be used, or that overwriting would delete, Interrupted
    after Ctrl-C.
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; name the one that holds the data sets (see: unfused-fast tasks)")
    refuse_label_fraction(plan.linear)
    ranks = options.ranks
    start = ranks.every(lambda: _teacher(teacher, plan, options))  # checked before anything is packed

    def begin() -> None:
        claim(out, "a LAPE benchmark")
        old = [out / name for name in ("runs", "tasks") if options.overwrite and (out / name).exists()]
        for given in (
            data,
            encoder_place(teacher),
            *([] if plan.pretrain_on is None else [plan.pretrain_on.directory]),
        ):
            if any(given.resolve().is_relative_to(folder.resolve()) for folder in old):
                raise UserError(f"{given}: --overwrite would delete it, since it is in {out}; choose another --out")
        if any(find(task, data) for task in tasks):
            with writing(out):
                for folder in old:
                    shutil.rmtree(folder)

    ranks.first(begin)
    pool, lines = RunPool(out / "runs", options), []
    for task in tasks:
        try:
            line = _run_task(task, data, start, out, plan, pool, workers)
        except RankLost:
            raise
        except UserError as error:
            console.print(f"{task.name}: {error}", style="yellow")
            line = {"state": "wrong", "reason": str(error)}
        facts = {"task": task.name, "title": task.title, "benchmark": task.benchmark, "paper": dict(task.results)}
        lines.append({**facts, **line})
        # Written after every task, so that it exists whatever ends the next one.
        summary = {**summary_of(lines, plan.linear.eval.encoder, str(out)), "seen": plan.seen}
        if ranks.leads:
            write_report(out, "lape", summary, tables(summary), sentences(summary))
    return summary


def _teacher(run: str | Path, plan: LapePlan, options: Options) -> PooledRun:
    """A run and the model folder that was exported from it count as one teacher, unless its projection head is used."""
    teacher = load_encoder(run, options.device)
    assert teacher.network is not None  # only log-mel has none
    heads = teacher.projector if plan.distill.pseudo.feature == "projector" else None
    made_of = {
        "config": flatten(teacher.config),
        "log_mel": teacher.log_mel,
        "encoder": encoder_digest(teacher.network),
        "projector": None if heads is None else encoder_digest(heads),
    }
    return PooledRun(Path(teacher.name), config_digest(made_of), {})


def _run_task(
    task: Task, data: Path, teacher: PooledRun, out: Path, plan: LapePlan, pool: RunPool, workers: int | None
) -> dict[str, Any]:
    place = find(task, data)
    if place is None:
        return {"state": "missing", "get": where_to_get(task)}
    console.print(f"{task.name}: {place}")
    ranks, folder = pool.options.ranks, out / "shards" / task.name
    packed = ranks.first(lambda: str(shards_of(task, place, folder, workers).directory))
    shards = ranks.every(lambda: open_shards(Path(packed)))
    if task.by_folds or "test" in shards.manifest.splits:
        plan = replace(plan, measured=replace(plan.measured, holdout=None))
    first = plan.distill.train.seed
    seeds = range(first, first + plan.seeds)
    measured = replace(plan.measured, by_folds=task.by_folds)
    clips = ranks.every(lambda: measurable(plan.linear, shards, measured, seeds))  # before stage 2 runs for hours
    if clips.multi_label:
        raise UserError(
            f"{shards.directory}: its clips have several labels each, but {task.name} is measured by accuracy, on one "
            f"label a clip; pack a set with one, or give this folder a name other than {task.name}"
        )
    crop: dict[str, Any] = {"data.crop_seconds": task.seconds} if plan.crops_of_tasks else {}
    configs = [with_values(plan.distill, {"train.seed": seed, **crop}) for seed in seeds]
    runs = [str(pool.distill(config, shards, teacher).path) for config in configs]
    part, measured = plan.linear.eval.encoder, replace(measured, seed_of_run=True)
    result = evaluate_once(plan.linear, shards, {part: runs}, measured, out / "tasks" / task.name / part, pool.options)
    rows = {f"{row['label_fraction']:g}": row for row in result["rows"]}
    shown = rows[max(rows, key=float)]
    return {
        "state": "done",
        **{name: shown[name] for name in ("test", "standard_error", "interval", "macro_f1")},
        "seeds": [*seeds],
        "by_fraction": {
            fraction: {name: row[name] for name in ("test", "standard_error")} for fraction, row in rows.items()
        },
        "classes": result["classes"],
        "clips": {split: info.clips for split, info in shards.manifest.splits.items()},
        "cost": {name: shown[name] for name in ("parameters", "macs")},
        "runs": runs,
        "methods": _methods(task, shards, plan, seeds, out, pool),
        "notes": _notes(task, shards, plan),
    }


def _methods(
    task: Task, shards: ShardSet, plan: LapePlan, seeds: Sequence[int], out: Path, pool: RunPool
) -> dict[str, Any]:
    """Method -> its test accuracy over seeds, and why some failed."""
    if plan.pretrain_on is None:
        return {}
    heads = with_values(plan.linear, {"eval.encoder": "full"})
    fractions = (max(plan.measured.fractions),)
    measured = replace(plan.measured, by_folds=task.by_folds, fractions=fractions, read_again=True)
    labelled, found = [LabelledTask(task.name, shards, measured)], dict[str, Any]()
    for name, config in plan.methods.items():
        lines = [encoder_scores(name, config, heads, plan.pretrain_on, labelled, out, seed, pool) for seed in seeds]
        tests = [line["scores"][task.name]["test"] for line in lines if "scores" in line]
        found[TITLES[name]] = {"test": spread(tests), "failed": [line for line in lines if "reason" in line]}
    return found


def _notes(task: Task, shards: ShardSet, plan: LapePlan) -> list[str]:
    """Differences of this copy or this protocol to the paper's."""
    notes, classes = [], len(shards.manifest.label_names)
    if plan.linear.eval.select == "best_test":
        notes.append("the head was selected on the test set, so the number is optimistic")
    if classes != task.classes:
        notes.append(f"{classes:,} classes here, {task.classes:,} in the paper")
    if shards.manifest.dataset is None:
        notes.append("a set of your own; its split and labels were not checked against the task's")
    if plan.measured.holdout is not None:
        notes.append(f"{plan.measured.holdout:g} of train was held out as test; stage 2 trained on it without labels")
    if task.by_folds:
        notes.append("stage 2 trained on the clips of all folds without labels")
    return [*notes, *([task.unclear] if task.unclear else [])]


def summary_of(rows: Sequence[dict[str, Any]], encoder: str, out: str) -> dict[str, Any]:
    """The outcome of each task -> the content of lape.json; accuracies are shares, the papers' are in per cent.

    `average` is over finished tasks only, for ours and each of the paper's columns; a column with a dash in one of them
    has none.
    """
    average = {}
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [row for row in rows if row["benchmark"] == benchmark]
        done = [row for row in mine if row["state"] == "done"]
        papers = {name: [row["paper"][name] for row in done] for name in mine[0]["paper"]}
        average[benchmark] = {
            "tasks": f"{len(done)} of {len(mine)}",
            "test": _mean([row["test"] for row in done]),
            "methods": {
                name: _mean([row["methods"][name]["test"]["mean"] for row in done])
                for name in (done[0]["methods"] if done else ())
            },
            "paper": {name: _mean(numbers) for name, numbers in papers.items()},
        }
    return {"encoder": encoder, "tasks": [*rows], "average": average, "run": out}


def tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """A table for each benchmark, in per cent."""
    found = list[TextTable]()
    for benchmark, average in summary["average"].items():
        rows = [row for row in summary["tasks"] if row["benchmark"] == benchmark]
        fractions = sorted({fraction for row in rows for fraction in row.get("by_fraction", {})}, key=float)[:-1]
        others, lines = list(dict.fromkeys((*rows[0]["paper"], *average["methods"]))), []
        for row in rows:
            few = [row.get("by_fraction", {}).get(fraction) for fraction in fractions]
            done, methods = row["state"] == "done", row.get("methods", {})
            lines.append(
                [
                    row["title"],
                    percent(row["test"], row["standard_error"]) if done else row["state"],
                    percent_span(row["interval"]) if done else "",
                    *("" if cell is None else percent(cell["test"], cell["standard_error"]) for cell in few),
                    *_others({name: spread_text(of["test"]) for name, of in methods.items()}, row["paper"], others),
                ]
            )
        ours = [f"average of {average['tasks']}", percent(average["test"]), "", *[""] * len(fractions)]
        means = {name: percent(mean) for name, mean in average["methods"].items()}
        lines.append([*ours, *_others(means, average["paper"], others)])
        named = [f"{name}, here" if name in average["methods"] else name for name in others]
        few_labels = [f"{100 * float(fraction):g} % of labels" for fraction in fractions]
        columns = ["task", f"ours, {summary['encoder']}", "95 % interval", *few_labels, *named]
        title = "test accuracy in %, compared with the numbers of the paper; the average is over the tasks done here"
        found.append((f"{benchmark}: {title}", columns, lines))
    return found


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Text below the tables: cost, missing tasks and where to get them, failed ones and why, notes."""
    lines = []
    cost = next((row["cost"] for row in summary["tasks"] if row["state"] == "done"), None)
    if cost is not None:
        lines.append(
            f"Encoder {summary['encoder']}: {cost['parameters']:,} parameters, {cost['macs']:,} multiply-accumulates "
            "for 0.95 s, both counted here. The paper says that its encoder has about 40 % fewer parameters than "
            "DeLoRes-M; that is its claim, which no count of ours confirms."
        )
    for row in summary["tasks"]:
        if row["state"] == "missing":
            get = row["get"]
            lines.append(
                f"{row['task']} is missing: put it in a folder {get['folder']}. From: {get['source']}. Licence: "
                f"{get['licence']}. Layout: {get['layout']}."
            )
        elif row["state"] == "wrong":
            lines.append(f"{row['task']} could not be measured: {row['reason']}")
        else:
            notes = [f"{name}, {trouble(of['failed'])}" for name, of in row["methods"].items() if of["failed"]]
            if notes := [*notes, *row["notes"]]:
                lines.append(f"{row['task']}: {'; '.join(notes)}.")
    if summary["seen"] is not None:
        lines.append(
            f"Columns `here`: methods pre-trained here by {seen_text(summary['seen'])} each, through one front end "
            "and encoder; the paper's figure in brackets."
        )
    return lines


def _mean(numbers: Sequence[float | None]) -> float | None:
    """None where there are no numbers, or one of them is a dash."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known and len(known) == len(numbers) else None


def _others(here: Mapping[str, str], printed: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    """The paper's numbers, with a blank for a dash; in brackets beside those of methods pre-trained here."""
    numbers = ((name, printed.get(name)) for name in names)
    return [
        beside(here[name], number) if name in here else "" if number is None else f"{number:.1f}"
        for name, number in numbers
    ]
