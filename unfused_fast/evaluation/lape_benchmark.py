"""The LAPE benchmark: stages 2 and 3 on every task whose data are here, beside the paper's Table 1.

OUT/shards/<task>/                  packed here, where the data came as published
OUT/tasks/<task>/seed-<n>/          distill/ (a run), predictions.parquet, result.json: written last, never twice
OUT/lape.json, lape.md              the table

Stopped at any moment, the same command goes on: what has a result.json is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unfused_fast.config import Config, Task, flatten, with_values
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.evaluation.intervals import judged
from unfused_fast.evaluation.lape_data import find, shards_of, where_to_get
from unfused_fast.evaluation.lape_report import summary_of, write_report
from unfused_fast.evaluation.measure import Plan, measure, refuse_label_fraction
from unfused_fast.evaluation.predictions import accuracy_interval, write_predictions
from unfused_fast.evaluation.table import result_rows
from unfused_fast.models import encoder_cost
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import FrozenEncoder, distill, holdout_input, labelled_clips, load_encoder, rounds_of
from unfused_fast.training import Options, encoder_digest, write_json

REQUEST, RESULT, PREDICTIONS = "request.json", "result.json", "predictions.parquet"


@dataclass(frozen=True)
class LapePlan:
    """What is done with every task."""

    distill: Config
    linear: Config
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the train labels; the largest is what is set beside the paper."""
    seeds: int = 1
    holdout: float | None = None
    """Share of the train recordings that are the test, of a set that has none; the others keep theirs."""
    crops_of_tasks: bool = True
    """Stage 2 sees crops of each task's own seconds in place of the config's. Source: the authors' code has a
    window for each task.
    """

    def request(self, teacher: FrozenEncoder) -> dict[str, Any]:
        """What must stay the same for OUT to go on: all but tasks and the number of seeds. A run and the model folder
        that was exported from it are one teacher, unless its projection head is used.
        """
        assert teacher.network is not None  # only log-mel has none
        heads = teacher.projector if self.distill.pseudo.feature == "projector" else None
        values = {
            "teacher": {
                "config": flatten(teacher.config),
                "log_mel": teacher.log_mel,
                "encoder": encoder_digest(teacher.network),
                "projector": None if heads is None else encoder_digest(heads),
            },
            "distill": flatten(self.distill),
            "linear": flatten(self.linear),
            "fractions": self.fractions,
            "crops_of_tasks": self.crops_of_tasks,
            **holdout_input(self.holdout),
        }
        return dict(json.loads(json.dumps(values)))


def lape(
    data: Path,
    teacher: Path,
    out: Path,
    tasks: Sequence[Task],
    plan: LapePlan,
    options: Options,
    workers: int | None = None,
) -> dict[str, Any]:
    """Runs the tasks; returns the content of lape.json. A task that is missing or wrong is named, and not fatal.

    Raises UserError for a `data`, teacher or `out` that cannot be used, Interrupted after Ctrl-C.
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; name the one that holds the data sets (see: unfused-fast tasks)")
    refuse_label_fraction(plan.linear)
    # a teacher that cannot be used is refused before anything is packed
    _claim(out, plan.request(load_encoder(teacher, options.device)), options.overwrite)
    lines = []
    for task in tasks:
        try:
            line = _run_task(task, data, teacher, out, plan, options, workers)
        except UserError as error:
            console.print(f"{task.name}: {error}", style="yellow")
            line = {"state": "wrong", "reason": str(error)}
        lines.append({"task": task.name, "title": task.title, **line})
        # The table is there after every task, whatever ends the next.
        summary = summary_of(tasks[: len(lines)], lines, plan.linear.eval.encoder, str(out))
        write_report(out, summary)
    return summary


def _run_task(
    task: Task, data: Path, teacher: Path, out: Path, plan: LapePlan, options: Options, workers: int | None
) -> dict[str, Any]:
    place = find(task, data)
    if place is None:
        return {"state": "missing", "get": where_to_get(task)}
    console.print(f"{task.name}: {place.path}")
    shards = shards_of(task, place, out / "shards" / task.name, workers)
    if task.by_folds or "test" in shards.manifest.splits:
        plan = replace(plan, holdout=None)
    first = plan.distill.train.seed
    folders = {seed: out / "tasks" / task.name / f"seed-{seed}" for seed in range(first, first + plan.seeds)}
    _refuse_unmeasurable(task, shards, plan, [*folders])
    results = []
    for seed, folder in folders.items():
        results.append(_finished(folder, shards) or _run_seed(task, shards, teacher, folder, plan, seed, options))
    files = [folder / PREDICTIONS for folder in folders.values()]
    return {
        "state": "done",
        "results": results,
        "interval": list(accuracy_interval(files, max(plan.fractions), task.by_folds, first)),
        "notes": _notes(task, shards, plan),
    }


def _refuse_unmeasurable(task: Task, shards: ShardSet, plan: LapePlan, seeds: Sequence[int]) -> None:
    """Raises UserError for a set that stage 3 could not measure, before stage 2 has run for hours."""
    clips = labelled_clips(shards, task.by_folds, holdout=plan.holdout)
    if clips.multi_label:
        raise UserError(
            f"{shards.directory}: its clips have several labels each, but {task.name} is measured by accuracy, on one "
            f"label a clip; pack a set with one, or name this folder otherwise than {task.name}"
        )
    for seed in seeds:
        rounds_of(clips, task.by_folds, plan.linear.eval.valid_fraction, seed)


def _finished(folder: Path, shards: ShardSet) -> dict[str, Any] | None:
    """result.json of an earlier command, which must be of the same data."""
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = dict(json.loads(path.read_text(encoding="utf-8")))
        digest = result["data_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {folder} to run it again") from error
    if digest != shards.manifest.digest:
        raise UserError(f"{path}: of other clips than {shards.directory} has now; delete {folder} to run it again")
    console.print(f"{folder}: finished already")
    return result


def _run_seed(
    task: Task, shards: ShardSet, teacher: Path, folder: Path, plan: LapePlan, seed: int, options: Options
) -> dict[str, Any]:
    """Stages 2 and 3 with one seed; leaves result.json when all is done."""
    started, run = time.perf_counter(), folder / "distill"
    if run.exists() and not (run / "config.json").exists():  # killed before it was a run
        shutil.rmtree(run)
    values: dict[str, Any] = {"train.seed": seed}
    crop = {"data.crop_seconds": task.seconds} if plan.crops_of_tasks else {}
    distill(
        with_values(plan.distill, {**values, **crop}),
        shards,
        teacher,
        run,
        replace(options, resume=True, overwrite=False),
    )
    config, name = with_values(plan.linear, values), plan.linear.eval.encoder
    measuring = Plan(("linear",), plan.fractions, task.by_folds, holdout=plan.holdout)
    clips, measured = measure(config, shards, {name: [str(run)]}, measuring, options.device)
    cost = encoder_cost(plan.distill, name)
    rows = result_rows(clips, judged(clips, measured, seed), {name: cost})
    shown = max(rows, key=lambda row: float(row["label_fraction"]))
    write_predictions(folder / PREDICTIONS, clips, measured)
    result = {
        "stage": "lape",
        "task": task.name,
        "encoder": name,
        "metric": shown["metric"],
        "select": plan.linear.eval.select,
        "label_fraction": shown["label_fraction"],
        "valid": shown["valid"],
        "test": shown["test"],
        "macro_f1": {"test": shown["macro_f1"]},
        "interval": shown["interval"],
        "rows": rows,
        "cost": asdict(cost),
        "clips": {split: info.clips for split, info in shards.manifest.splits.items()},
        "held_out": None if clips.held_out is None else clips.held_out._asdict(),
        "classes": len(clips.label_names),
        "seed": seed,
        "data_digest": shards.manifest.digest,
        "seconds": round(time.perf_counter() - started, 2),
        "run": str(folder),
    }
    write_json(folder / RESULT, result)
    return result


def _notes(task: Task, shards: ShardSet, plan: LapePlan) -> list[str]:
    """What sets this copy or this protocol apart from the paper's."""
    notes, classes = [], len(shards.manifest.label_names)
    if plan.linear.eval.select == "best_test":
        notes.append("the head was selected on the test set, so the number is optimistic")
    if classes != task.classes:
        notes.append(f"{classes:,} classes here, {task.classes:,} in the paper")
    if shards.manifest.dataset is None:
        notes.append("a set of your own, whose split and labels were not compared with the task's")
    if plan.holdout is not None:
        notes.append(f"{plan.holdout:g} of train was held out as test, and stage 2 heard it, without its labels")
    if task.by_folds:
        notes.append("stage 2 heard the clips of all folds, without their labels")
    return [*notes, *([task.unclear] if task.unclear else [])]


def _claim(out: Path, request: dict[str, Any], overwrite: bool) -> None:
    """Takes OUT for this request, or goes on with it. Raises UserError when it holds something else."""
    path = out / REQUEST
    try:
        if path.is_file() and not overwrite:
            recorded = json.loads(path.read_text(encoding="utf-8"))
            if names := _differing(recorded, request):
                raise UserError(
                    f"{out}: it was begun with other settings: {'; '.join(names[:4])}; give the same ones to go on, "
                    "--overwrite to start again (packed sets stay), or another --out"
                )
            return
        killed = path.with_name(path.name + ".new")  # what a kill may leave of the first file written here
        if not path.is_file() and out.exists() and (not out.is_dir() or {*out.iterdir()} - {killed}):
            raise UserError(f"{out}: it exists and was not made by unfused-fast lape; choose another --out")
        if (out / "tasks").exists():
            shutil.rmtree(out / "tasks")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, request)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be used ({error}); choose another --out") from error


def _differing(recorded: dict[str, Any], request: dict[str, Any], prefix: str = "") -> list[str]:
    """`name was A, now B` for every leaf that differs."""
    found = []
    for name in sorted({*recorded, *request}):
        before, now = recorded.get(name), request.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differing(before, now, f"{prefix}{name} ")
        elif before != now:
            found.append(f"{prefix}{name} was {before}, now {now}")
    return found
