"""Results as tables: on the terminal, as markdown, as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import sem

from unfused_fast.console import counted
from unfused_fast.errors import UserError, cause, unreadable
from unfused_fast.json_files import read_json
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import write_json

TextTable = tuple[str, Sequence[str], list[list[str]]]
"""Title, columns, rows."""
COMMANDS = ("ablation", "compare", "lape")
"""Names of the reports that may lie in one folder, whose runs they share."""
SELECTED_ON_TEST = (
    "the linear heads were selected on the test set (eval.select = best_test): these numbers are optimistic"
)
REPORT_COLUMNS = (
    *("run", "stage", "method", "task", "encoder", "labels", "valid", "test", "macro-F1", "clips", "seed", "seconds"),
)


def collect_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The result.json of each run, and of every run below a directory that is not a run itself, in order of path; of a
    run that several paths lead to once.

    Raises UserError for a path without runs, and for a damaged file.
    """
    results, seen = list[dict[str, Any]](), set[Path]()
    for path in paths:
        files = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.rglob("result.json"))
        if not files:
            state = "does not exist" if not path.exists() else "holds no finished run (no result.json)"
            raise UserError(f"{path}: it {state}; give directories that unfused-fast train wrote")
        for file in files:
            if (place := file.resolve()) in seen:
                continue
            seen.add(place)
            try:
                result = {**read_json(file), "run": str(file.parent)}
                table_rows([result])
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise unreadable(file, error, "run the stage again, or name other directories") from error
            results.append(result)
    return results


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row of text per result, in the order of REPORT_COLUMNS; cells that a stage does not measure are empty."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = []
    for result in results:
        clips, f1, fraction = result.get("clips", {}), result.get("macro_f1", {}), result.get("label_fraction")
        macro = f1.get("test") if f1.get("test") is not None else f1.get("valid")
        rows.append(
            [
                str(result["run"]),
                str(result["stage"]),
                str(result.get("method", "-")),
                str(result.get("task", "")),
                str(result.get("encoder", "")),
                "" if fraction is None else f"{fraction:.0%}",
                share(result.get("valid")),
                share(result.get("test")) + (" (held out)" if result.get("held_out") else ""),
                share(macro),
                " / ".join(str(clips[name]) for name in ("train", "valid", "test") if name in clips),
                str(result.get("seed", "")),
                f"{result['seconds']:.1f}",
            ]
        )
    return rows


def claim(out: Path, what: str) -> None:
    """Creates the folder OUT, which may hold what `ablate`, `compare` and `lape` wrote. Raises UserError for others."""
    files = {
        "runs",
        "runs.parquet",
        "scores",
        "shards",
        "tasks",
        *(f"{name}.{kind}" for name in COMMANDS for kind in ("json", "md", "png")),
    }
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: it is a file, but {what} is a directory; choose another --out")
    parts = {path.name.removesuffix(".new"): path.is_dir() for path in out.glob("*")}
    if others := {name for name, folder in parts.items() if name not in files or folder == ("." in name)}:
        raise UserError(f"{out}: it holds {min(others)}, which is not part of {what}; choose another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(out: Path, flag: str = "--out") -> Iterator[None]:
    """Wraps code that writes OUT, which `flag` names. Raises UserError where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({cause(error)}); choose another {flag}") from error


def write_report(
    out: Path, name: str, summary: Mapping[str, Any], tables: Sequence[TextTable], sentences: Sequence[str] = ()
) -> None:
    """OUT/NAME.json and OUT/NAME.md."""
    write_json(out / f"{name}.json", summary)
    parts = [f"{title}\n\n{markdown(columns, rows)}" for title, columns, rows in tables]
    replace_file(out / f"{name}.md", "\n\n".join([*parts, *sentences]).encode() + b"\n")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured table; `|` inside a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def held_out_text(holdout: float | None) -> str:
    """The part of a table's title about a held-out test."""
    return "" if holdout is None else f", test held out of train (--holdout {holdout:g})"


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (sample deviation over root n); no error for a single value."""
    return float(np.mean(values)), float(sem(values)) if len(values) > 1 else None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of `seeds` values; None where there is none."""
    mean, error = mean_and_error(values) if values else (None, None)
    return {"mean": mean, "standard_error": error, "seeds": len(values), "values": list(values)}


def spread_text(of: Mapping[str, Any], sign: str = "") -> str:
    """A spread of shares as `81.2 ± 0.4`."""
    return percent(of["mean"], of["standard_error"], sign)


def beside(here: str, printed: float | None) -> str:
    """`81.2 ± 0.4 (83.2)`: a score and a paper's figure in per cent, without what there is not."""
    return " ".join(text for text in (here, "" if printed is None else f"({printed:.1f})") if text)


def outcome(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the seeds of a row ended, each with a `reason` where it failed."""
    done = [line["seed"] for line in lines if "reason" not in line]
    failed = [{"seed": line["seed"], "reason": line["reason"]} for line in lines if "reason" in line]
    return {"state": "failed" if failed else "done" if done else "waiting", "seeds": done, "failed": failed}


def not_shown_text(summary: Mapping[str, Any], named: str) -> list[str]:
    """The sentence about results in OUT of earlier commands that `named` others; none where there are none."""
    others = summary["not_shown"]
    if not others:
        return []
    results = f"{counted(len(others), 'more result')} in {summary['run']}, such as {others[0]}"
    return [f"Not shown: {results}; to see them, name their {named} too, with the settings that they were made with."]


def ending(row: Mapping[str, Any]) -> list[str]:
    """Cells of an outcome's `seconds` and trouble."""
    seconds = row["seconds"]["mean"]
    waiting = "waiting" if row["state"] == "waiting" else ""
    return ["" if seconds is None else f"{seconds:.1f}", trouble(row["failed"]) or waiting]


def trouble(failed: Sequence[Mapping[str, Any]]) -> str:
    """`seeds 0, 1: what happened`: the reason without advice, which is for single runs; the JSON holds both."""
    seeds = defaultdict[str, list[str]](list)
    for one in failed:
        seeds[one["reason"].split(";")[0]].append(str(one["seed"]))
    return "; ".join(f"seed{'s'[: len(of) - 1]} {', '.join(of)}: {reason}" for reason, of in seeds.items())


def percent(mean: float | None, error: float | None = None, sign: str = "") -> str:
    """Shares as `81.2 ± 0.4`, empty for None; `sign` = + shows the sign of a difference."""
    if mean is None:
        return ""
    return f"{100 * mean:{sign}.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def percent_span(interval: Sequence[float]) -> str:
    """Shares as `79.0 to 83.1`."""
    return " to ".join(percent(end) for end in interval)
