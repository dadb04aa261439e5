"""The page of what pre-training learns on the development corpus, from the stores of runs that corpus.py, search.py,
compare and ablate wrote.

python benchmarks/results_page.py DIR DIR --page docs/results.md

Each DIR has a runs.parquet. The part of the page has the baselines and each method's best recipe; the folder named as
the page gets runs.md with every run, those that lost, failed or were given up too, accuracy.png, progress.png, and
runs.parquet, which keeps the rows: those of the DIRs are added to them.
A method's best recipe is the one of the highest mean validation over the judged tasks, among those whose test was read
if there are some, at each width; `recommended` on the same clips for as many epochs is shown beside it. Nothing else is
read of the test than what the table shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import write_part
from recipes import Rows, Trained, agreement, agreement_text, best, judged, trained, width_of

from unfused_fast.commands.exits import run_app
from unfused_fast.config import BASELINES
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.evaluation import markdown, mean_and_error, percent, read_runs, write_rows
from unfused_fast.evaluation.compare_report import TITLES
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.training import plot_scores
from unfused_fast.training.plots import LINE_STYLES


def plot_progress(path: Path, rows: Rows) -> None:
    """Mean validation of every run against clips seen and against minutes, a colour for a method and width: of linear
    heads at the end, above, with the baselines, and where runs were looked at between epochs, of nearest neighbours,
    below, a line a run.
    """
    heads = [head for head in ("linear", "knn") if any(row["head"] == head and row["stage"] for row in rows)]
    figure = Figure(figsize=(11, 1 + 3.6 * max(1, len(heads))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(heads)), 2, squeeze=False)
    methods = sorted({(row["method"], width_of(row)) for row in rows if row["stage"] == "pretrain"})
    for (line, head), (column, cost) in itertools.product(enumerate(heads), enumerate(("clips_seen", "seconds"))):
        cell, unit = axes[line][column], 1 if cost == "clips_seen" else 60
        for number, (method, width) in enumerate(methods):
            curves = _curves(rows, method, width, head, cost)
            for number_of, curve in enumerate(curves):
                label = f"{TITLES.get(method, method)} (width {width})" if not number_of else None
                points = [(spent / unit, 100 * score) for spent, score in curve]
                cell.plot(*zip(*points, strict=True), "o-", color=f"C{number}", ms=3.5, lw=0.8, alpha=0.7, label=label)
        levels = [one for one in trained(rows) if one.stage is None and one.mean("valid") and head == "linear"]
        levels.sort(key=lambda level: level.width)
        for level, style in zip(levels, itertools.cycle(LINE_STYLES)):
            height = 100 * fmean(level.mean("valid").values())
            cell.axhline(height, color="black", linewidth=1, linestyle=style, label=level.label)
        cell.set(xlabel="clips seen" if unit == 1 else "minutes of training", ylabel=f"{head}, validation in %")
        cell.grid(alpha=0.3)
    if heads and methods:
        axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _curves(rows: Rows, method: str, width: int, head: str, cost: str) -> list[list[tuple[float, float]]]:
    """Of each run (cost, mean score over its tasks) after each epoch at which it was measured."""
    runs = defaultdict[str, dict[float, dict[str, float]]](lambda: defaultdict(dict))
    tasks = judged(rows)
    for row in rows:
        wanted = (row["method"], row["stage"], row["head"], row["split"]) == (method, "pretrain", head, "valid")
        if wanted and width_of(row) == width and row[cost] is not None and (head != "linear" or row["task"] in tasks):
            runs[row["run"]][row[cost]][row["task"]] = row["score"]
    fewest = len(tasks) if head == "linear" else 1
    whole = ({spent: of for spent, of in points.items() if len(of) >= fewest} for points in runs.values())
    return [[(spent, fmean(of.values())) for spent, of in sorted(points.items())] for points in whole if points]


def front(recipes: Sequence[Trained], rows: Rows, folder: str) -> Iterator[str]:
    """The part of the page: the table of the best."""
    shown = best(recipes)
    tasks = judged(rows)
    others = [task for task in dict.fromkeys(row["task"] for row in rows if row["task"]) if task not in tasks]
    runs = {row["run"] for row in rows if row["stage"] not in (None, "linear")}
    facts = [sorted({str(row[name]) for row in rows if row[name]}) for name in ("device", "commit")]
    torch = sorted({json.loads(row["versions"] or "{}").get("torch", "") for row in rows} - {""})
    yield (
        "Each encoder is frozen and judged by linear heads, their rate chosen on validation. Of "
        f"{counted(len(runs), 'run')} ([all of them]({folder}/runs.md)) the best recipe of each method by mean "
        f"validation over {counted(len(tasks), 'task')}, at each width, and `recommended` of the same length beside "
        "it; test accuracy in %, mean ± standard error over seeds; the test was read once. On "
        f"{', '.join(facts[0])}, torch {', '.join(torch)}, commits {', '.join(facts[1])}. Clips seen and minutes of "
        "UnFuSeD are of stage 2 alone, a task."
    )
    lines = []
    for one in shown:
        seen, seconds = one.cost("clips_seen"), one.cost("seconds")
        size = [str(one.width or ""), "" if one.stage is None else one.words]
        spent = [f"{fmean(seen):,.0f}" if seen else "", f"{fmean(seconds) / 60:.1f}" if seconds else ""]
        means = [f"**{text}**" if (text := _cell(one.mean(split))) else "" for split in ("valid", "test")]
        count = str(len(one.mean("valid")))
        of_tasks = [_cell(one.scores(task, "test")) for task in (*tasks, *others)]
        lines.append([one.title, *means, *of_tasks, *spent, count, *size])
    columns = ["encoder", "mean, valid", "mean, test", *tasks, *others]
    yield markdown([*columns, "clips seen", "minutes", "seeds", "width", "settings"], lines)
    if any(one.stage is not None and one.mean("test") for one in shown):
        yield f"![mean test accuracy against minutes of training]({folder}/accuracy.png)"
    yield f"![mean validation against clips seen and minutes, every run]({folder}/progress.png)"


def _cell(scores: Mapping[int, float]) -> str:
    return percent(*mean_and_error([*scores.values()])) if scores else ""


def every_run(recipes: Sequence[Trained], rows: Rows) -> Iterator[str]:
    """runs.md: each recipe that was run, and whether small runs rank as large ones."""
    yield "# Runs on the development corpus"
    yield (
        "All runs of runs.parquet, written by `benchmarks/results_page.py`. Mean over the judged tasks in %, of linear "
        "heads, ± standard error over seeds; test is empty where it was not read. Differences of a point or less of "
        "one run each say nothing."
    )

    def rank(one: Trained) -> tuple[str, str, float]:
        return one.method, one.stage or "", -fmean(one.mean("valid").values() or [0.0])

    lines = [
        [
            one.title,
            one.words,
            one.set,
            str(one.width),
            str(one.epochs),
            f"{max(one.cost('clips_seen'), default=0):,.0f}",
            f"{fmean(one.cost('seconds') or [0.0]) / 60:.1f}",
            str(len({row["seed"] for row in one.rows})),
            _cell(one.mean("valid")),
            _cell(one.mean("test")),
            one.ends,
        ]
        for one in sorted((one for one in recipes if one.stage is not None), key=rank)
    ]
    columns = [
        "encoder",
        "settings",
        "set",
        "width",
        "epochs",
        "clips seen",
        "minutes",
        "seeds",
        "valid",
        "test",
        "end",
    ]
    yield markdown(columns, lines)
    if found := agreement(rows):
        yield "Whether a short run of a narrow encoder ranks recipes as a long one does (Spearman, mean validation):"
        yield "\n".join(f"- {agreement_text(line)}" for line in found)


def write(rows: Rows, page: Path) -> None:
    """The part of the page, and the files in the folder that is named as it."""
    recipes, folder = trained(rows), page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "runs.md", ("\n\n".join(every_run(recipes, rows)) + "\n").encode())
    write_rows(rows, folder / "runs.parquet")
    plot_progress(folder / "progress.png", rows)
    points, levels = {}, {}
    for one in best(recipes):
        if tested := [*one.mean("test").values()]:
            mean, error = mean_and_error(tested)
            score = (100 * mean, 100 * (error or 0.0))
            if one.method in BASELINES:
                levels[one.label] = score
            else:
                minutes, spread = mean_and_error([seconds / 60 for seconds in one.cost("seconds")] or [0.0])
                label = one.label if one.label not in points else f"{one.label}, {one.words}"
                points[label] = ((minutes, spread or 0.0), score)
    if points:
        labels = ("minutes of training", "mean test accuracy in %")
        plot_scores(folder / "accuracy.png", points, levels, labels, "each method's best by validation")
    write_part(page, "benchmarks/results_page.py", "\n\n".join(front(recipes, rows, folder.name)) + "\n")


def main() -> None:
    """Parses, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="with a runs.parquet each")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    given = parser.parse_args()
    kept = given.page.with_suffix("")
    rows = read_runs([*given.folders, *([kept] if (kept / "runs.parquet").exists() else [])])
    for row in (row for row in rows if row["state"] == "damaged"):
        console.print(f"left out: {row['reason']}", style="yellow")
    if not any(row["score"] is not None for row in rows):
        raise UserError(
            f"{', '.join(map(str, given.folders))}: no run is evaluated yet; wait for corpus.py or search.py"
        )
    write(rows, given.page)
    console.print(f"wrote {given.page}, and runs.md and pictures in {given.page.with_suffix('')}")


if __name__ == "__main__":
    run_app(main)
