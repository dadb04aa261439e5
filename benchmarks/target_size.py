"""Stage 2 by the size of its target: what it adds to its teacher on a task of the development corpus, against the clips
without labels that it learned from.

python benchmarks/target_size.py CORPUS --out DIR --seeds 3 --page docs/stage2.md    CORPUS, DIR as of corpus.py

A target is the first 500, 1,000, 2,000 or 4,000 clips of pool.csv that come from where the task's clips come from, or
all of them where there are fewer; those of the task's train split are first. Stage 2 is `recommended`, with as many
clusters as the task has classes. It begins from stage 1 by `recommended` on the pool, of the same seed, width and
epochs: the run of corpus.py where DIR has it. Linear heads learn from the task's own train split, whatever the target
was. The test is read once.

The same command continues after an interruption; DIR/runs.parquet has all runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from corpus import QUICK, Corpus, arguments, opened
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import write_part

from unfused_fast.commands.exits import run_app
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.evaluation import markdown, mean_and_error, percent, write_runs
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.csv_rows import csv_rows
from unfused_fast.shards.sources.row import SourceRow

SIZES = (500, 1000, 2000, 4000)
SPEECH = "amazon-queen|steel-sky|qabcs|gcin-voice|festvox|kajongg|/voices?/"
TARGETS: dict[str, tuple[str, str]] = {
    "hero_voice": ("amazon-queen", "^$"),
    "speaker_id": (SPEECH, "^$"),
    "words_synth": ("words_synth", "^$"),
    "sound_event": ("", f"{SPEECH}|words_synth|instrument|piano|music|musik|songs?/|bgm|soundtrack"),
}
"""Task -> what is, and what is not, in the paths of clips like its own: of the same adventure, speech, words by the
same synthesisers, sounds that are neither speech nor music. The other tasks have fewer than 1,600 such clips.
"""
Gains = Mapping[tuple[str, int], Mapping[str, list[float]]]
"""Task, clips -> split -> by seed, accuracy after stage 2 less the teacher's, shares of 1."""


def rows_like(corpus: Corpus, task: str) -> list[SourceRow]:
    """The pool's clips from where the task's come from."""
    wanted, other = (re.compile(pattern) for pattern in TARGETS[task])
    own = {row.path for row in csv_rows(corpus.folder / "tasks" / task / "train.csv")}
    texts = ((row, str(row.path).lower()) for row in csv_rows(corpus.folder / "pool.csv"))
    rows = [row for row, text in texts if wanted.search(text) and not other.search(text)]
    return sorted(rows, key=lambda row: row.path not in own)


def targets(corpus: Corpus, task: str) -> Iterator[ShardSet]:
    """The smallest first."""
    rows = rows_like(corpus, task)
    if not rows:
        raise UserError(f"{corpus.folder}/pool.csv: no clip like those of {task}; give the development corpus")
    for size in sorted({min(size, len(rows)) for size in SIZES}):
        yield corpus.shards(f"{task}_{size}", partial(list, rows[:size]))


def gains(corpus: Corpus, seeds: int) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Trains and judges what is missing."""
    made, sets = dict[tuple[str, int], dict[str, list[float]]](), {task: [*targets(corpus, task)] for task in TARGETS}
    for seed in range(seeds):
        teacher = corpus.trained({}, "pool", seed)
        for task, own in sets.items():
            before = corpus.scores(teacher, task, seed, True)
            classes = {"pseudo.k": len(corpus.task(task).manifest.label_names)}
            for target in own:
                run = corpus.distilled(teacher, target, "recommended", seed, classes)
                after = corpus.scores(run, task, seed, True)
                of = made.setdefault((task, target.manifest.splits["train"].clips), {"valid": [], "test": []})
                for split, found in of.items():
                    found.append(after[split] - before[split])
                text = ", ".join(f"{split} {100 * found[-1]:+.1f}" for split, found in of.items())
                console.print(f"target_size: {target.name}, seed {seed}: {text}")
        write_runs(corpus.pool.directory)
    return made


def table(found: Gains) -> str:
    """A line a target; ± is the standard error over seeds."""
    lines = [
        [task, f"{clips:,}", *(percent(*mean_and_error(of[split]), "+") for split in ("valid", "test"))]
        for (task, clips), of in found.items()
    ]
    return markdown(["task", "clips of the target", "valid", "test"], lines)


def plot(found: Gains, path: Path) -> None:
    """Gain against clips, a line a task, for validation and test."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, split in zip(figure.subplots(1, 2, sharey=True), ("valid", "test"), strict=True):
        for task in TARGETS:
            points = {clips: mean_and_error(of[split]) for (name, clips), of in found.items() if name == task}
            means, errors = zip(*((100 * mean, 100 * (error or 0.0)) for mean, error in points.values()), strict=True)
            axes.errorbar([*points], means, errors, marker="o", capsize=3, label=task)
        axes.axhline(0.0, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="clips of the target", ylabel=f"{split}: points above the teacher")
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parses, runs, writes."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of stage 1")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder's blocks; 64 is the paper's")
    parser.add_argument("--page", type=Path, help="page that gets the table, and its folder the picture")
    given = parser.parse_args()
    found = gains(opened(given, QUICK), given.seeds)
    console.print(table(found), markup=False)
    if given.page is not None:
        picture = given.page.with_suffix("") / "target_size.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot(found, picture)
        link = f"![points above the teacher against clips of the target]({picture.parent.name}/{picture.name})"
        write_part(given.page, "benchmarks/target_size.py", f"{table(found)}\n\n{link}\n")


if __name__ == "__main__":
    run_app(main)
