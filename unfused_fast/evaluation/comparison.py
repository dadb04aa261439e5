"""`evaluate`: measures encoders and writes DIR/evaluation.json, evaluation.md and predictions.parquet."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unfused_fast.config import Config, flatten
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.evaluation.intervals import scored
from unfused_fast.evaluation.measure import Measured, Plan, measure
from unfused_fast.evaluation.report import TextTable, held_out_text, write_report, writing
from unfused_fast.evaluation.run_pool import finished
from unfused_fast.evaluation.run_store import settings_of
from unfused_fast.evaluation.table import comparisons, pair_table, result_rows, result_table, without_empty_columns
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import LabelledClips
from unfused_fast.training import Options, config_digest, replaceable

FILES = {"evaluation.json", "evaluation.md", "predictions.parquet"}


def evaluate(
    config: Config, shards: ShardSet, encoders: Mapping[str, Sequence[str]], plan: Plan, out: Path, options: Options
) -> dict[str, Any]:
    """Measures `encoders` (name -> runs) on a labelled set; returns the content of evaluation.json. Rank 0 writes.

    Raises UserError for a set, a run or an `out` that cannot be used, the last before anything is measured.
    """
    started, real, ranks = time.perf_counter(), out.resolve(), options.ranks
    making = real.with_name(f"{real.name}.partial")

    def check() -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not (out / "evaluation.json").is_file():
                raise UserError(f"{out}: it exists and is not an evaluation; choose another --out")
            if not options.overwrite:
                raise UserError(f"{out}: it already contains an evaluation; use --overwrite, or another --out")
        replaceable(out, FILES, "an evaluation")
        with writing(out):
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            making.rmdir()

    def write() -> dict[str, Any]:
        result = _result(config, shards, encoders, plan, clips, measured)
        result["seconds"] = round(time.perf_counter() - started, 2)
        with writing(out):
            making.mkdir()
            write_predictions(making / "predictions.parquet", shards, clips, measured)
            write_report(making, "evaluation", result, evaluation_tables(result))
            if real.exists():
                shutil.rmtree(real)
            making.replace(real)
        return result

    ranks.first(check)
    clips, measured = measure(config, shards, encoders, plan, options.device, ranks)
    return dict(ranks.first(write))


def _result(
    config: Config,
    shards: ShardSet,
    encoders: Mapping[str, Sequence[str]],
    plan: Plan,
    clips: LabelledClips,
    measured: Sequence[Measured],
) -> dict[str, Any]:
    """The content of evaluation.json, but for the time."""
    scores = scored(clips, measured, config.train.seed)
    return {
        "task": shards.name,
        "metric": "mAP" if clips.multi_label else "accuracy",
        "rows": result_rows(clips, scores),
        "comparisons": comparisons(clips, scores),
        "held_out": None if clips.held_out is None else clips.held_out._asdict(),
        "plan": asdict(plan),
        "encoders": {name: [*runs] for name, runs in encoders.items()},
        "select": config.eval.select,
        "classes": len(clips.label_names),
        "settings": settings_of(flatten(config), "linear"),
        "config_digest": config_digest(flatten(config)),
        "data_digest": shards.manifest.digest,
    }


def evaluate_once(
    config: Config, shards: ShardSet, encoders: Mapping[str, Sequence[str]], plan: Plan, out: Path, options: Options
) -> dict[str, Any]:
    """As evaluate, of runs of a pool, whose names say what they are; `out` is replaced unless an earlier command
    measured the same.
    """
    wanted = {
        "config_digest": config_digest(flatten(config)),
        "data_digest": shards.manifest.digest,
        "plan": json.loads(json.dumps(asdict(plan))),
        "encoders": {name: [Path(run).name for run in runs] for name, runs in encoders.items()},
    }
    result = options.ranks.first(lambda: finished(out, "evaluation.json"))
    if result is not None:
        runs = {name: [Path(run).name for run in of] for name, of in result["encoders"].items()}
        if wanted == {**{name: result.get(name) for name in wanted}, "encoders": runs}:
            console.print(f"{out}: already finished")
            return dict(result)
    return evaluate(config, shards, encoders, plan, out, replace(options, overwrite=True))


def write_predictions(path: Path, shards: ShardSet, clips: LabelledClips, measured: Sequence[Measured]) -> None:
    """One row per test recording, encoder, method, share of labels and repetition.

    Columns clip_id and key (of its first piece in the set), pieces (clips that it was cut into), fold, label, encoder,
    method, label_fraction, run, seed, prediction; of a multi-label set `labels` and `scores` (C,) in place of label and
    prediction.
    """
    tables, pieces = [], np.bincount(clips.recording_of)
    for found in measured:
        size = len(found.rows)
        columns: dict[str, Any] = {
            "clip_id": clips.clip_ids[found.rows],
            "key": shards.clips["key"].take(clips.clip_ids[found.rows]),
            "pieces": pieces[clips.recording_of[found.rows]],
            "fold": pa.array([None if fold < 0 else fold for fold in clips.fold_of[found.rows].tolist()], pa.int32()),
            "encoder": [found.encoder] * size,
            "method": [found.method] * size,
            "label_fraction": [found.fraction] * size,
            "run": [found.run] * size,
            "seed": [found.seed] * size,
        }
        if clips.multi_label:
            columns["labels"] = [np.flatnonzero(truth).tolist() for truth in clips.targets[found.rows]]
            columns["scores"] = pa.array(list(found.scores), pa.list_(pa.float32()))
        else:
            columns["label"] = clips.targets[found.rows]
            columns["prediction"] = found.scores.argmax(axis=1)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def evaluation_tables(result: Mapping[str, Any]) -> list[TextTable]:
    """The metric and its test recordings; and comparisons of each pair of encoders, where there are several. Columns
    that are empty in every row are left out.
    """
    recordings = counted(result["rows"][0]["test_recordings"], "recording")
    held = held_out_text(result["plan"]["holdout"])
    title = f"test {result['metric']} in % on {result['task']}, {recordings}{held}"
    pairs = result["comparisons"]
    tables = [result_table(title, result["rows"]), *([pair_table(pairs)] if pairs else [])]
    return [without_empty_columns(table) for table in tables]
