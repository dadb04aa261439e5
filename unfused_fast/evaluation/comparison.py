"""`evaluate`: measures encoders and leaves DIR/evaluation.json, evaluation.md and predictions.parquet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unfused_fast.config import BASELINES, Config, flatten, from_flat
from unfused_fast.errors import UserError
from unfused_fast.evaluation.intervals import judged
from unfused_fast.evaluation.measure import Plan, measure
from unfused_fast.evaluation.predictions import write_predictions
from unfused_fast.evaluation.report import held_out_text, markdown
from unfused_fast.evaluation.table import PAIR_COLUMNS, TABLE_COLUMNS, comparisons, pair_texts, result_rows, table_texts
from unfused_fast.models import Cost, encoder_cost
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import Options, config_digest, read_description, write_json

RESULT = "evaluation.json"


def evaluate(
    config: Config,
    shards: ShardSet,
    encoders: Mapping[str, Sequence[str]],
    plan: Plan,
    out: Path,
    options: Options,
) -> dict[str, Any]:
    """Measures `encoders` (name -> runs) on a labelled set; returns the content of evaluation.json.

    Raises UserError for a set, a run or an `out` that cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / RESULT).is_file():
            raise UserError(f"{out}: it exists and is no evaluation; choose another --out")
        if not options.overwrite:
            raise UserError(f"{out}: there is an evaluation already; use --overwrite, or another --out")
    making = _place_to_write(out)
    started = time.perf_counter()
    clips, measured = measure(config, shards, encoders, plan, options.device)
    judgements = judged(clips, measured, config.train.seed)
    rows = result_rows(clips, judgements, costs_of(encoders, config))
    pairs = comparisons(clips, judgements)
    result = {
        "task": shards.directory.name,
        "metric": "mAP" if clips.multi_label else "accuracy",
        "rows": rows,
        "comparisons": pairs,
        "held_out": None if clips.held_out is None else clips.held_out._asdict(),
        "plan": asdict(plan),
        "select": config.eval.select,
        "classes": len(clips.label_names),
        "config_digest": config_digest(flatten(config)),
        "data_digest": shards.manifest.digest,
        "seconds": round(time.perf_counter() - started, 2),
    }
    real = out.resolve()
    try:
        making.mkdir(parents=True)
        write_predictions(making / "predictions.parquet", clips, measured)
        tables = [evaluation_title(result), markdown(TABLE_COLUMNS, table_texts(rows))]
        tables += [markdown(PAIR_COLUMNS, pair_texts(pairs))] if pairs else []
        text = "\n\n".join(tables) + "\n"
        (making / "evaluation.md").write_text(text, encoding="utf-8")
        write_json(making / RESULT, result)
        if real.exists():
            shutil.rmtree(real)
        making.replace(real)
    except OSError as error:
        raise _unwritable(out, error) from error
    return result


def evaluation_title(result: Mapping[str, Any]) -> str:
    """Of the table: what was measured, on which recordings."""
    recordings = f"{result['rows'][0]['test_recordings']:,} recordings"
    held = held_out_text(result["plan"]["holdout"])
    return f"test {result['metric']} in % on {result['task']}, {recordings}{held}"


def _place_to_write(out: Path) -> Path:
    """The folder that takes OUT's place when it is complete, not there yet. Raises UserError where it cannot be made,
    before anything is measured.
    """
    real = out.resolve()
    making = real.with_name(f"{real.name}.partial")
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        making.rmdir()
    except OSError as error:
        raise _unwritable(out, error) from error
    return making


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"{out}: cannot be written ({error.strerror}); choose another --out")


def costs_of(encoders: Mapping[str, Sequence[str]], config: Config) -> dict[str, Cost | None]:
    """Cost of each encoder's first run; of `random`, of the architecture that measure() gives it; None for log-mel."""
    architecture, costs = config, dict[str, Cost | None]()
    for run in (run for runs in encoders.values() for run in runs if run not in BASELINES):
        architecture = _config_of(run)
        break
    for name, (run, *_) in encoders.items():
        of = architecture if run == "random" else config if run == "logmel" else _config_of(run)
        costs[name] = None if run == "logmel" else encoder_cost(of, config.eval.encoder)
    return costs


def _config_of(run: str) -> Config:
    recorded = read_description(Path(run))
    assert recorded is not None  # measure() has loaded it
    return from_flat(recorded["config"])
