"""What stage 1 learns, as accuracy on a corpus of labelled tasks: recipes of DECAR-v2 beside log-mels and untrained
encoders, over seeds.

python benchmarks/corpus.py CORPUS --out DIR                       --page docs/results.md: its part of the page too
python benchmarks/corpus.py CORPUS --out DIR --recipe 'slow: optim.lr=0.1 loss.temperature=0.2'    recipes of your own
python benchmarks/corpus.py CORPUS --out DIR --quick               smoke test: its numbers mean nothing

CORPUS holds CSV files: pool.csv and pool_small.csv list clips without labels (column path), tasks/NAME/train.csv,
valid.csv and test.csv those of a task (columns path, label). The search trains each recipe once on the small pool and
reads validation only. The comparison trains the recipes of COMPARED on one pool, once a seed, and reads the test
once. The same command continues after an interruption: finished runs and scores are kept below DIR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import write_part

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.exits import run_app
from unfused_fast.commands.measure.machine import circumstances
from unfused_fast.commands.options import pairs, run_options
from unfused_fast.config import Config, preset, with_values
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.evaluation import Plan, markdown, mean_and_error, percent
from unfused_fast.evaluation.measure import measure
from unfused_fast.evaluation.run_pool import PooledRun, RunPool
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.csv_rows import csv_rows
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages import metric_of
from unfused_fast.training import plot_errors, quietly, write_json

BASELINES = {"log-mel": "logmel", "random encoder": "random"}
JUDGED = (
    "mandarin_tone",
    "mandarin_initial",
    "speaker_id",
    "hero_voice",
    "words_synth",
    "instrument_family",
    "sound_event",
)
"""Tasks of the mean. Ours: audio_type and music_title are shown beside it, because the corpus calls their validation
easier than their test, or their labels uncertain.
"""
BEFORE: dict[str, Any] = {"bank.init_mode": "eval"}
"""What `recommended` was until its first bank was filled in train mode."""
COMPARED: dict[str, dict[str, Any]] = {"DECAR-v2, before": BEFORE, "DECAR-v2, recommended": {}}
SEARCHED: dict[str, dict[str, Any]] = {
    "recommended": {},
    "before": BEFORE,
    "AdamW": {"optim.name": "adamw", "optim.lr": 5e-4},
    "whitened": {"cluster.algo": "pca_kmeans", "method.name": "decar-v1"},
    "bank by a pass": {"bank.fill": "pass"},
    "three heads": {"cluster.k": (64, 256, 1024)},
    "different crops": {"views.same_crop": False, "bank.view": "separate"},
    "no SpecAugment": {"aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0},
    "no dropout": {"model.dropout": 0.0},
    "K 128": {"cluster.k": 128},
    "rate 3": {"optim.lr": 3.0},
    "temperature 0.2": {"loss.temperature": 0.2},
}
QUICK = {"eval.epochs": 2, "cluster.iterations": 2, "cluster.k": 8}


@dataclass(frozen=True)
class Corpus:
    """The packed corpus, and where runs and scores are kept."""

    folder: Path
    out: Path
    values: Mapping[str, Any]
    """Fields set for every recipe."""
    pool: RunPool

    def shards(self, name: str, rows: Iterator[SourceRow]) -> ShardSet:
        """A set of OUT/shards, packed once."""
        directory = self.out / "shards" / name
        if (directory / "manifest.json").exists():
            return open_shards(directory)
        console.print(f"corpus: packing {name}")
        return pack(list(rows), directory, statistics=log_mel_statistics).shard_set

    def clips(self, name: str) -> ShardSet:
        """Clips without labels, by the name of their CSV."""
        return self.shards(name, iter(csv_rows(self.folder / f"{name}.csv")))

    def task(self, name: str) -> ShardSet:
        """A labelled set of three splits."""
        folder = self.folder / "tasks" / name
        splits = {split: csv_rows(folder / f"{split}.csv") for split in ("train", "valid", "test")}
        return self.shards(name, (replace(row, split=split) for split, rows in splits.items() for row in rows))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, those of JUDGED first."""
        found = sorted(path.name for path in (self.folder / "tasks").iterdir() if path.is_dir())
        return [*(name for name in JUDGED if name in found), *(name for name in found if name not in JUDGED)]

    def trained(self, recipe: Mapping[str, Any], pool: str, seed: int) -> PooledRun:
        """Stage 1 by `recommended` with a recipe's values laid over."""
        values = {**self.values, **recipe, "train.seed": seed}
        return self.pool.pretrain(with_values(preset("recommended", "pretrain"), values), self.clips(pool))

    def scores(self, encoder: str, digest: str, task: str, seed: int, test: bool) -> dict[str, float]:
        """`valid`, and `test` where asked for: accuracy of linear heads on the frozen encoder."""
        path = self.out / "scores" / f"{task}-{digest[:16]}-{seed}.json"
        found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        if "valid" in found and (not test or "test" in found):
            return found
        config = self.evaluation(seed)
        with quietly():
            clips, (measured,) = measure(
                config, self.task(task), {encoder: [encoder]}, Plan(), self.pool.options.device
            )
        found["valid"] = measured.valid
        if test:
            found["test"] = metric_of(clips, measured.rows, measured.scores)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found

    def evaluation(self, seed: int) -> Config:
        """Of linear heads; the architecture is that of the untrained encoder."""
        values = {**self.values, "train.seed": seed, "data.store": "resident"}
        return with_values(preset("recommended", "linear"), values)


def main() -> None:
    """Parses, runs, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with pool.csv, pool_small.csv and tasks/")
    parser.add_argument("--out", type=Path, default=Path("corpus-run"))
    parser.add_argument("--epochs", type=int, default=10, help="of stage 1")
    parser.add_argument("--seeds", type=int, default=2, help="of the comparison")
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder's blocks; 64 is the paper's")
    parser.add_argument(
        "--recipe", action="append", help="'NAME: field=value field=value', in place of ours; repeatable"
    )
    parser.add_argument("--search-only", action="store_true", help="train on the small pool only; the test is not read")
    parser.add_argument("--pool", choices=["pool", "pool_small"], default="pool", help="clips of the comparison")
    parser.add_argument("--page", type=Path, help="write the tables into this page too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds}: want at least 1")
    if not (given.corpus / "tasks").is_dir():
        raise UserError(f"{given.corpus}: it has no folder tasks/; give a corpus folder (see --help)")
    values = {**width_values(given.width), "train.epochs": 1 if given.quick else given.epochs}
    options = run_options(given.device, None, False, False)
    corpus = Corpus(
        given.corpus.resolve(),
        given.out,
        {**values, **(QUICK if given.quick else {})},
        RunPool(given.out / "runs", options),
    )
    recipes = dict(recipe_of(text) for text in given.recipe or ())
    result = {"epochs": values["train.epochs"], "width": given.width, **circumstances(options.device)}
    result["clips"] = {name: corpus.clips(name).manifest.splits["train"].clips for name in ("pool_small", "pool")}
    result["searched"] = [*search(corpus, recipes or SEARCHED)]
    if not given.search_only:
        result["pool"] = "pool_small" if given.quick else given.pool
        seeds = 1 if given.quick else given.seeds
        result["compared"] = [*compare(corpus, recipes or COMPARED, result["pool"], seeds)]
    write(result, given.out, given.page)


def recipe_of(text: str) -> tuple[str, dict[str, Any]]:
    """'NAME: field=value field=value' -> name and values. Raises UserError for another form."""
    name, colon, values = text.partition(":")
    if not colon or not name.strip():
        raise UserError(f"--recipe '{text}': want 'NAME: field=value field=value'")
    return name.strip(), pairs(values.split())


def search(corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Recipes on the small pool with seed 0, by validation."""
    for name, encoder, digest, log in encoders(corpus, recipes, "pool_small", 0):
        tasks = {
            task: corpus.scores(encoder, digest, task, 0, False)["valid"] for task in corpus.tasks if task in JUDGED
        }
        mean = fmean(tasks.values())
        console.print(f"corpus: {name}: {100 * mean:.1f} % of validation, mean of the judged tasks")
        yield {"recipe": name, "values": dict(recipes.get(name, {})), "valid": tasks, "mean": mean, "log": log}


def compare(
    corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]], pool: str, seeds: int
) -> Iterator[dict[str, Any]]:
    """Recipes on a pool, by validation and test, once a seed."""
    for seed in range(seeds):
        for name, encoder, digest, log in encoders(corpus, recipes, pool, seed):
            tasks = {task: corpus.scores(encoder, digest, task, seed, True) for task in corpus.tasks}
            yield {"recipe": name, "seed": seed, "scores": tasks, "log": log}


def encoders(
    corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]], pool: str, seed: int
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(name, encoder as `evaluate` takes it, digest, last line of its log): the baselines, then each recipe."""
    for name, encoder in BASELINES.items():
        yield name, encoder, f"{encoder}-{corpus.values['model.channels']}", {}
    for name, values in recipes.items():
        run = corpus.trained(values, pool, seed)
        last = (run.path / "log.jsonl").read_text().splitlines()[-1]
        yield name, str(run.path), run.digest, json.loads(last)


def write(result: dict[str, Any], out: Path, page: Path | None) -> None:
    """OUT/corpus.json, corpus.md and corpus.png; the page's part between its markers."""
    write_json(out / "corpus.json", result)
    text = "\n\n".join([*_introduction(result), *_compared(result), *_searched(result)]) + "\n"
    replace_file(out / "corpus.md", text.encode())
    if lines := result.get("compared"):
        tasks = list(lines[0]["scores"])
        points = {
            name: [_point(lines, name, [task], "test", 100) for task in tasks]
            for name in dict.fromkeys(line["recipe"] for line in lines)
        }
        plot_errors(out / "corpus.png", tasks, points, "test accuracy in %, ± standard error over seeds")
    console.print(f"wrote {out / 'corpus.json'}, corpus.md" + (", corpus.png" if lines else ""))
    if page is not None:
        write_part(page, "benchmarks/corpus.py", text)
        console.print(f"wrote {page}")


def _point(
    lines: Sequence[Mapping[str, Any]], name: str, tasks: Sequence[str], split: str, scale: float = 1.0
) -> tuple[float, float]:
    """Mean over seeds of a recipe's mean over tasks, and its standard error, 0 for a single seed."""
    values = [scale * fmean(line["scores"][task][split] for task in tasks) for line in lines if line["recipe"] == name]
    mean, error = mean_and_error(values)
    return mean, error or 0.0


def _introduction(result: Mapping[str, Any]) -> Iterator[str]:
    yield "# The development corpus"
    yield (
        f"Written by `benchmarks/corpus.py`: stage 1 for {counted(result['epochs'], 'epoch')} at width "
        f"{result['width']}, then linear heads on the frozen encoder, their rate chosen on validation. On "
        f"{result['device']} ({counted(result['cores'], 'core')}), {result['versions']}, commit {result['commit']}, "
        f"{result['date']}."
    )


def _compared(result: Mapping[str, Any]) -> Iterator[str]:
    lines = result.get("compared", [])
    if not lines:
        return
    names = list(dict.fromkeys(line["recipe"] for line in lines))
    seeds = len({line["seed"] for line in lines})
    judged = [task for task in lines[0]["scores"] if task in JUDGED]
    yield (
        f"Test accuracy in %, mean ± standard error over {counted(seeds, 'seed')}; pre-training on "
        f"{counted(result['clips'][result['pool']], 'clip')}, test read once. The mean is over the first {len(judged)} "
        "tasks."
    )

    def cells(tasks: Sequence[str], split: str) -> list[str]:
        found = [_point(lines, name, tasks, split) for name in names]
        return [percent(mean, error if seeds > 1 else None) for mean, error in found]

    rows = [[task, *cells([task], "test")] for task in lines[0]["scores"]]
    means = ["**mean**", *(f"**{cell}**" for cell in cells(judged, "test"))]
    rows[len(judged) : len(judged)] = [means, ["mean, validation", *cells(judged, "valid")]]
    yield markdown(["task", *names], rows)


def _searched(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "The search: validation accuracy in % (seed 0), pre-training on "
        f"{counted(result['clips']['pool_small'], 'clip')}; the last bank's effective rank and mean direction "
        "(docs/clustering.md). One run each: differences of a point or less say nothing."
    )
    judged = list(result["searched"][0]["valid"])
    rows = [
        [
            line["recipe"],
            " ".join(f"`{name}={value}`" for name, value in line["values"].items()),
            percent(line["mean"]),
            *(percent(line["valid"][task]) for task in judged),
            *(str(line["log"].get(name, "")) for name in ("loss", "effective_rank", "mean_direction")),
        ]
        for line in sorted(result["searched"], key=lambda line: -line["mean"])
    ]
    yield markdown(["recipe", "values", "mean", *judged, "last loss", "effective rank", "mean direction"], rows)


if __name__ == "__main__":
    run_app(main)
