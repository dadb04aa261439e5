"""The runs of a pool and their scores as one parquet, made anew from result files, so that it cannot contradict them.

OUT/runs/                                 the pool (run_pool.py)
OUT/tasks/<task>/<name>-<seed>/           evaluations (comparison.py)
OUT/scores/<task>-<encoder>-<seed>.json   scores of scores.py
OUT/runs.parquet                          a row for each run, task and split; one for a run without scores
"""

from __future__ import annotations

import io
import json
import typing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from unfused_fast.config import BASELINES, MethodName, Stage, flatten, preset
from unfused_fast.errors import UserError, unreadable
from unfused_fast.evaluation.measure import Method
from unfused_fast.evaluation.report import writing
from unfused_fast.evaluation.run_pool import finished, record_of
from unfused_fast.json_files import read_json
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import read_description

SPLITS = ("valid", "test")
DIGEST = 64
"""Characters of a digest, with which what a run is made from begins."""
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("digest", pa.string()),
        ("stage", pa.string()),
        ("method", pa.string()),
        ("teacher", pa.string()),
        ("config", pa.string()),
        ("seed", pa.int64()),
        ("set", pa.string()),
        ("clips", pa.int64()),
        ("epoch", pa.int64()),
        ("clips_seen", pa.int64()),
        ("seconds", pa.float64()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("score", pa.float64()),
        ("metric", pa.string()),
        ("head", pa.string()),
        ("heads", pa.string()),
        ("log", pa.string()),
        ("commit", pa.string()),
        ("versions", pa.string()),
        ("device", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("file", pa.string()),
    ]
)
"""`run`: name of its directory, or a baseline. `method`: of stage 1. `teacher`: of stage 2. `config`: JSON of all
fields but the seed; of a baseline of its sizes. `heads`: of those in which the heads differ from `recommended`.
`clips_seen`, `seconds`: up to `epoch`, without the start. `score`: a share of 1. `head`: linear or knn. `log`: the last
line of log.jsonl. `state`: done, failed, pruned, unfinished, or damaged, where a file cannot be read. `file`: where the
score is.
"""


def write_runs(pool: Path) -> list[dict[str, Any]]:
    """Makes the parquet beside a pool, and returns its rows. Several processes may do so at once. Raises UserError
    where it cannot be written; a damaged file is a row with the reason.

    Left out are scores of encoders that are not in the pool, and means over several runs, as of `lape`.
    """
    with writing(pool):
        pool.mkdir(parents=True, exist_ok=True)
        with FileLock(pool / "store.lock"):
            return write_rows([*_rows(pool)], pool.with_name(f"{pool.name}.parquet"))


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Writes rows, which may lack columns, as a parquet; returns them with all."""
    table, made = pa.Table.from_pylist([*rows], SCHEMA), io.BytesIO()
    pq.write_table(table, made, compression="zstd")
    replace_file(path, made.getvalue())
    return list(table.to_pylist())


def read_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of OUT/runs.parquet of each folder, each run's once; where it is done in one, as it is there."""
    found = dict[tuple[Any, ...], dict[str, Any]]()
    for folder in folders:
        path = folder / "runs.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error, "give folders that compare, ablate, corpus.py or search.py wrote") from error
        if table.schema != SCHEMA:
            raise UserError(f"{path}: written by another version; run the command that wrote it again")
        for row in table.to_pylist():
            key = [row[name] for name in ("run", "config", "seed", "epoch", "task", "split", "head", "heads")]
            found.setdefault(tuple(key), row)
    done = {row["run"] for row in found.values() if row["state"] == "done"}
    return [row for row in found.values() if row["state"] == "done" or row["run"] not in done]


def usual_settings(values: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The flattened `recommended` of a stage and of the method of `values`, as JSON gives it; of the usual method where
    they are of a version with other methods.
    """
    method = values.get("method.name")
    known = method if stage == "pretrain" and method in typing.get_args(MethodName) else None
    usual: dict[str, Any] = json.loads(json.dumps(flatten(preset("recommended", stage, known))))
    return usual


def settings_of(values: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The fields of a flattened config, but for the seed, that differ from `recommended` of its stage and method."""
    usual = usual_settings(values, stage)
    given = json.loads(json.dumps(dict(values)))
    return {name: value for name, value in given.items() if name != "train.seed" and usual.get(name) != value}


@dataclass(frozen=True)
class Scored:
    """A measurement of an encoder on a task."""

    encoder: str
    """Name of the run's directory, or a baseline."""
    task: str
    seed: int
    head: Method
    settings: dict[str, Any]
    """See settings_of, of the heads' config."""
    metric: str
    scores: dict[str, float]
    """Split -> share of 1."""
    epoch: int | None
    """None: the last one."""
    file: Path


def _rows(pool: Path) -> Iterator[dict[str, Any]]:
    paths = {path for path in pool.glob("*-*/") if (path / "config.json").is_file()}
    paths |= {path.with_suffix("") for path in pool.glob("*-*.json")}
    runs, damaged = dict[str, _Run](), list[dict[str, Any]]()
    for path in sorted(paths):
        try:
            runs[path.name] = _run_of(path)
        except UserError as error:
            damaged.append({"run": path.name, "state": "damaged", "reason": str(error)})
    names = {run.digest: name for name, run in runs.items() if run.digest is not None}
    scores = defaultdict[str, list[Scored]](list)
    for read, pattern in ((_score_file, "scores/*.json"), (_evaluation, "tasks/*/*/evaluation.json")):
        for file in sorted(pool.parent.glob(pattern)):
            place = file.relative_to(pool.parent)
            try:
                for one in read(file, place):
                    scores[one.encoder].append(one)
            except UserError as error:
                damaged.append({"run": str(place), "file": str(place), "state": "damaged", "reason": str(error)})
    for one in _linear_runs(runs, names):
        scores[one.encoder].append(one)
    yield from damaged
    for name, run in runs.items():
        if run.stage == "linear" and run.result is not None:
            continue  # its scores are those of its encoder
        row = {**run.facts(), "teacher": None}
        if run.stage == "distill":
            row["teacher"] = names.get(run.source)
            row["method"] = runs[row["teacher"]].config.get("method.name") if row["teacher"] else None
        for found in (*scores[name],) or (None,):
            yield from _scored({**row, **run.progress(None if found is None else found.epoch)}, found)
    for one in (one for name in BASELINES for one in scores[name]):
        model = {field: value for field, value in one.settings.items() if field.startswith("model.")}
        facts = {"run": one.encoder, "method": one.encoder, "config": json.dumps(model), "state": "done"}
        yield from _scored({**facts, "seed": one.seed}, one)


def _scored(row: Mapping[str, Any], one: Scored | None) -> Iterator[dict[str, Any]]:
    """A row for each split, or one without a score."""
    if one is None:
        yield dict(row)
        return
    heads = json.dumps({field: value for field, value in one.settings.items() if field.startswith("eval.")})
    facts = {"task": one.task, "metric": one.metric, "head": one.head, "heads": heads, "file": str(one.file)}
    for split, score in one.scores.items():
        yield {**row, **facts, "split": split, "score": score}


def _run_of(path: Path) -> _Run:
    """Raises UserError where the files of a run do not say what its rows need."""
    try:
        run = _Run(path)
        _ = run.facts(), run.progress(None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, error, f"delete it and {record_of(path).name} to run it again") from error
    return run


class _Run:
    """What a pool's directory and record say of a run."""

    def __init__(self, path: Path) -> None:
        record = read_object(record_of(path)) if record_of(path).exists() else {}
        description = read_description(path) or {}
        made = {**description, **record}
        self.path, self.result = path, finished(path)
        self.digest: str | None = record.get("digest")
        self.stage: Stage = made["stage"]
        self.config: dict[str, Any] = made["config"]
        self.source = str(record.get("from", ""))[:DIGEST]
        self._made = made
        self._lines = [line for line in map(_line, _log(path)) if line is not None]
        clips = made.get("clips")
        clips = self.result["clips"].get("train") if clips is None and self.result is not None else clips
        self._clips = None if clips is None else int(clips)

    def facts(self) -> dict[str, Any]:
        """Columns that are the same for all of its scores."""
        over = {"state": "done", "reason": None} if self.result is not None else {}
        made, last = self._made, self._lines[-1] if self._lines else {}
        last = {name: value for name, value in last.items() if name != "parts"}
        return {
            "run": self.path.name,
            "digest": self.digest,
            "stage": self.stage,
            "method": self.config.get("method.name"),
            "config": json.dumps({name: value for name, value in self.config.items() if name != "train.seed"}),
            "seed": self.config["train.seed"],
            "set": made.get("set"),
            "clips": self._clips,
            "log": json.dumps(last) if last else None,
            "commit": made.get("commit"),
            "versions": json.dumps(made.get("versions")),
            "device": made.get("device"),
            "state": made.get("state", "unfinished"),
            "reason": made.get("reason"),
            **over,
        }

    def progress(self, epoch: int | None) -> dict[str, Any]:
        """What it had cost after an epoch, or after the last one that it logged."""
        lines = [line for line in self._lines if epoch is None or line["epoch"] <= epoch]
        if not lines:
            return {}
        done = int(lines[-1]["epoch"])
        seconds = round(sum(line["epoch_seconds"] for line in lines), 2)
        return {"epoch": done, "clips_seen": None if self._clips is None else done * self._clips, "seconds": seconds}


def _score_file(path: Path, name: Path) -> list[Scored]:
    found = read_object(path)
    try:
        scored = Scored(
            encoder=found["encoder"],
            task=found["task"],
            seed=found["seed"],
            head=found["head"],
            settings=found["settings"],
            metric=found["metric"],
            scores={split: float(found[split]) for split in SPLITS if split in found},
            epoch=found["epoch"],
            file=name,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path, error, "run the command that wrote it again, or delete it") from error
    return [scored]


def _evaluation(path: Path, name: Path) -> Iterator[Scored]:
    result = finished(path.parent, path.name) or {}
    for row in (row for row in result["rows"] if len(row["runs"]) == 1):
        few = {} if row["label_fraction"] == 1 else {"eval.label_fraction": row["label_fraction"]}
        yield Scored(
            encoder=Path(row["runs"][0]["run"]).name,
            task=result["task"],
            seed=row["runs"][0]["seed"],
            head=row["method"],
            settings={**result.get("settings", {}), **few},
            metric=row["metric"],
            scores={split: row[split] for split in SPLITS},
            epoch=None,
            file=name,
        )


def _linear_runs(runs: Mapping[str, _Run], names: Mapping[str, str]) -> Iterator[Scored]:
    for name, run in runs.items():
        if run.stage == "linear" and run.result is not None and run.source in names:
            yield Scored(
                encoder=names[run.source],
                task=run.result["task"],
                seed=run.config["train.seed"],
                head="linear",
                settings=settings_of(run.config, "linear"),
                metric=run.result.get("metric", "accuracy"),
                scores={split: run.result[split] for split in SPLITS if run.result[split] is not None},
                epoch=None,
                file=Path(run.path.parent.name, name, "result.json"),
            )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of a pool or of scores. Raises UserError where it is damaged."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error, "delete it, and run the command that wrote it again") from error


def _log(run: Path) -> list[str]:
    path = run / "log.jsonl"
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _line(text: str) -> dict[str, Any] | None:
    """A line of the log; None of one that a kill left half written."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return None
