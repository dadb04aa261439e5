"""Finished runs as one HTML file that needs nothing else: scores with intervals, curves, confusion matrices, settings
that differ, versions.
"""

from __future__ import annotations

import base64
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import binomtest

from unfused_fast import __version__
from unfused_fast.console import counted
from unfused_fast.errors import UserError, unreadable
from unfused_fast.evaluation.report import REPORT_COLUMNS, mean_and_error, table_rows, writing
from unfused_fast.evaluation.run_store import usual_settings
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import plot_confusions, plot_curves, read_description

CURVES = {"loss": "loss", "valid": "validation", "nmi": "NMI to the epoch before", "effective_rank": "effective rank"}
"""Numbers of log.jsonl that have a panel, where a run has them, and its axis."""
LARGEST_MATRIX = 60
"""Classes up to which a confusion matrix is drawn. Ours: more are a grey square."""
STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --soft: #616773; --line: #e2e4e8; --paper: #fff; --ground: #fbfbfa;
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK JP", sans-serif; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a0a7b4; --line: #2f353f; --paper: #1b1f26; --ground: #14171c; } }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; color: var(--ink); background: var(--ground); }
h1 { font-size: 24px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 36px 0 10px; }
p { color: var(--soft); margin: 4px 0 12px; max-width: 80ch; }
.wide { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; font-size: 12.5px; color: var(--soft); white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 22ch; }
td.short { white-space: nowrap; min-width: 0; }
h3 { font-size: 14px; margin: 16px 0 6px; }
figure { margin: 0 0 14px; width: fit-content; max-width: 100%; box-sizing: border-box;
  background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
figure img { display: block; max-width: 100%; height: auto; }
.side { display: flex; flex-wrap: wrap; gap: 14px; }
@media print { .wide { overflow: visible; } }
"""


def write_report_page(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes PATH from what `collect_results` gave.

    The interval of an accuracy is Wilson's of 95 % over the test recordings, from the confusion matrix; runs that
    differ in the seed alone, and in no other setting, are one more row, mean ± standard error. Settings are shown that
    differ within a stage, or from its recommended preset.

    Raises:
        UserError: a run's files are damaged, or PATH cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--html {path}: it is a folder; name a file to write")
    names = _short([str(result["run"]) for result in results])
    runs = [Path(str(result["run"])) for result in results]
    described = [read_description(run) for run in runs]
    logs = [_log(run / "log.jsonl") for run in runs]
    written = f"{counted(len(runs), 'finished run')}, written by unfused-fast {__version__}"
    parts = [f"<h1>{escape(_title(runs))}</h1><p>{written}</p>"]
    parts.append(_scores(names, results, runs, described))
    parts += _curves(names, results, logs)
    parts += _matrices(names, results, runs)
    parts += _settings(names, results, described)
    versions = [(description or {}).get("versions", {}) for description in described]
    parts += _beside("Versions", "What computed each run.", names, versions, lambda values: True)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(runs))}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with writing(path, "--html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())


def accuracy_interval(confusion: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Counts (C, C), rows are classes -> Wilson's 95 % interval of the accuracy."""
    counts = np.asarray(confusion, np.int64)
    found = binomtest(int(np.trace(counts)), int(counts.sum())).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _short(runs: list[str]) -> list[str]:
    """Names of runs without the folders that all of them share; the last part at least."""
    parts = [Path(run).parts for run in runs]
    shared = 0
    while all(len(own) > shared + 1 for own in parts) and len({own[shared] for own in parts}) == 1:
        shared += 1
    return ["/".join(own[shared:]) for own in parts]


def _title(runs: list[Path]) -> str:
    shared = Path(os.path.commonpath([run.resolve() for run in runs]))
    return f"Runs in {shared.name}" if len(runs) > 1 else f"Run {shared.name}"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)

    def cell(text: str) -> str:
        return f"<td{' class=short' if len(text) < 20 else ''}>{escape(text)}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _scores(
    names: list[str],
    results: Sequence[Mapping[str, Any]],
    runs: list[Path],
    described: Sequence[Mapping[str, Any] | None],
) -> str:
    columns = [*REPORT_COLUMNS]
    place, seed = columns.index("test") + 1, columns.index("seed") + 1
    columns.insert(place, "95 % of test")
    rows, alike = [], defaultdict[tuple[str, ...], list[float]](list)
    for name, result, run, row, of in zip(names, results, runs, table_rows(results), described, strict=True):
        row[0], row[4] = name, row[4].removeprefix(str(run)[: -len(name)])
        try:
            known = result.get("confusion") and result.get("metric") == "accuracy" and result.get("test") is not None
            row.insert(place, "{:.3f} to {:.3f}".format(*accuracy_interval(result["confusion"])) if known else "")
        except (TypeError, ValueError, IndexError) as error:
            raise unreadable(run / "result.json", error, "run the stage again, or name other directories") from error
        if result.get("test") is not None:
            settings = {} if of is None else {**of["config"], "train.seed": None}
            alike[*row[1:6], json.dumps(settings, sort_keys=True)].append(float(result["test"]))
        rows.append(row)
    for (*key, _), values in alike.items():
        if len(values) > 1:
            mean = ["mean ± standard error", *key, *[""] * (len(columns) - 6)]
            mean[place - 1], mean[seed] = "{:.3f} ± {:.3f}".format(*mean_and_error(values)), f"{len(values)} runs"
            rows.append(mean)
    text = "Wilson's intervals over the test recordings; runs that differ in the seed alone have a mean as well."
    return f"<h2>Scores</h2><p>{text}</p>{_table(columns, rows)}"


def _curves(names: list[str], results: Sequence[Mapping[str, Any]], logs: list[list[dict[str, Any]]]) -> list[str]:
    parts = []
    for stage in dict.fromkeys(str(result["stage"]) for result in results):
        own = [(names[n], logs[n]) for n, result in enumerate(results) if result["stage"] == stage and logs[n]]
        there = [(key, label) for key, label in CURVES.items() if _logged(key, own)]
        if there:
            parts += [f"<h3>{escape(stage)}</h3>", _figure(f"Curves of {stage}", plot_curves, own, there)]
    return ["<h2>Curves</h2>", *parts] if parts else []


def _logged(key: str, logs: Sequence[tuple[str, list[dict[str, Any]]]]) -> bool:
    return any(row.get(key) is not None for _, rows in logs for row in rows)


def _matrices(names: list[str], results: Sequence[Mapping[str, Any]], runs: list[Path]) -> list[str]:
    parts = []
    for name, result, run in zip(names, results, runs, strict=True):
        classes = result.get("label_names", ())
        try:
            if result.get("confusion") and len(classes) <= LARGEST_MATRIX:
                cells = [[int(count) for count in row] for row in result["confusion"]]
                parts.append(_figure(f"Confusion matrix of {name}", plot_confusions, [(name, cells, classes)]))
        except (TypeError, ValueError, IndexError) as error:
            raise unreadable(run / "result.json", error, "run the stage again, or name other directories") from error
    note = "<p>Counts of test recordings, of validation where there is no test; colour: the share of the class.</p>"
    return ["<h2>Confusion matrices</h2>", note, '<div class="side">', *parts, "</div>"] if parts else []


def _settings(
    names: list[str], results: Sequence[Mapping[str, Any]], described: Sequence[Mapping[str, Any] | None]
) -> list[str]:
    parts = []
    for stage in dict.fromkeys(str(result["stage"]) for result in results):
        own = {
            names[n]: described[n]["config"]  # type: ignore[index]
            for n, result in enumerate(results)
            if result["stage"] == stage and described[n] is not None
        }
        if not own:
            continue
        recommended = {config.get("method.name"): usual_settings(config, stage) for config in own.values()}  # type: ignore[arg-type]
        if stage != "pretrain" or len(recommended) == 1:
            usual = {"recommended": next(iter(recommended.values()))}
        else:
            usual = {f"recommended of {method}": values for method, values in recommended.items()}
        text = "Settings in which runs differ from each other, or from the recommended preset."
        columns, every = [*usual, *own], [*usual.values(), *own.values()]
        parts += _beside(f"Settings of {stage}", text, columns, every, lambda values: len({*values}) > 1)
    return parts


def _beside(
    title: str, text: str, columns: list[str], values: Sequence[Mapping[str, Any]], shown: Callable[[list[str]], bool]
) -> list[str]:
    """A table with a column for each of several mappings, of those keys whose values are to be shown; columns that are
    equal are one.
    """
    keys = list(dict.fromkeys(key for each in values for key in each))
    cells = {key: [_cell(each.get(key, "")) for each in values] for key in keys}
    kept = {key: row for key, row in cells.items() if shown(row)}
    if not kept:
        return []
    alike = defaultdict[tuple[str, ...], list[str]](list)
    for column, own in zip(columns, zip(*kept.values(), strict=True), strict=True):
        alike[own].append(column)
    named = [", ".join(some) if len(some) < 6 else f"{some[0]} and {len(some) - 1} more" for some in alike.values()]
    rows = [[key, *(own[number] for own in alike)] for number, key in enumerate(kept)]
    return [f"<h2>{escape(title)}</h2><p>{escape(text)}</p>", _table(["", *named], rows)]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figure(title: str, plot: Callable[..., None], *content: Any) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        plot(path, *content)
        data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; none where there is no log."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if isinstance(row, dict)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "name other directories, or train again") from error
