"""What stage 1 learns, as accuracy on a corpus of labelled tasks: recipes of a method beside log-mels and untrained
encoders, over seeds.

python benchmarks/corpus.py CORPUS --out DIR                 then: python benchmarks/results_page.py DIR --page PAGE
python benchmarks/corpus.py CORPUS --out DIR --recipe 'slow: optim.lr=0.1 loss.temperature=0.2'    recipes of your own
python benchmarks/corpus.py CORPUS --out DIR --stage2 recommended --stage2 paper    UnFuSeD's stage 2 on each task too
python benchmarks/corpus.py CORPUS --out DIR --quick         smoke test: its numbers mean nothing

CORPUS holds CSV files: pool.csv and pool_small.csv list clips without labels (column path), tasks/NAME/train.csv,
valid.csv and test.csv those of a task (columns path, label); or the sets packed from them, each in the folder of its
name. The search trains each recipe once on the small pool and reads validation only; one recipe alone needs none. The
comparison trains the recipes of COMPARED on one pool, once a seed, and reads the test once. Stage 2 starts from the run
of each recipe, on the train clips of each task by itself.

The same command continues after an interruption: finished runs and scores are kept below DIR, and DIR/runs.parquet has
all of them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from recipes import JUDGED

from unfused_fast.commands.demo import width_values
from unfused_fast.commands.exits import run_app
from unfused_fast.commands.options import pairs, run_options
from unfused_fast.config import READ_BY, Config, MethodName, PresetName, preset, with_values
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.evaluation import score_once, write_runs
from unfused_fast.evaluation.run_pool import PooledRun, RunPool
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.csv_rows import csv_rows
from unfused_fast.shards.sources.row import SourceRow

POOLS = ("pool", "pool_small")
BASELINES = {"log-mel": "logmel", "random encoder": "random"}
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
STAGE2: tuple[PresetName, ...] = "recommended", "paper", "authors"
QUICK = {"train.epochs": 1, "eval.epochs": 2, "cluster.iterations": 2, "cluster.k": 8}


@dataclass(frozen=True)
class Corpus:
    """The packed corpus, and where runs and scores are kept."""

    folder: Path
    out: Path
    method: MethodName
    values: Mapping[str, Any]
    """Fields set for every recipe."""
    pool: RunPool
    quick: bool = False

    def shards(self, name: str, rows: Callable[[], Iterable[SourceRow]]) -> ShardSet:
        """A packed set of CORPUS, or of OUT/shards, where it is packed once."""
        given, directory = self.folder / name, self.out / "shards" / name
        for packed in (given, directory):
            if (packed / "manifest.json").exists():
                return open_shards(packed)
        console.print(f"corpus: packing {name}")
        return pack(list(rows()), directory, statistics=log_mel_statistics).shard_set

    def clips(self, name: str) -> ShardSet:
        """Clips without labels, by the name of their set."""
        return self.shards(name, lambda: csv_rows(self.folder / f"{name}.csv"))

    def task(self, name: str) -> ShardSet:
        """A labelled set of three splits."""

        def rows() -> Iterator[SourceRow]:
            for split in ("train", "valid", "test"):
                for row in csv_rows(self.folder / "tasks" / name / f"{split}.csv"):
                    yield replace(row, split=split)

        return self.shards(name, rows)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, those of JUDGED first."""
        folders = self.folder.glob("tasks/*/") if (self.folder / "tasks").is_dir() else self.folder.glob("*/")
        found = sorted(path.name for path in folders if path.name not in POOLS)
        return [*(name for name in JUDGED if name in found), *(name for name in found if name not in JUDGED)]

    def trained(self, recipe: Mapping[str, Any], pool: str, seed: int) -> PooledRun:
        """Stage 1 by the method's `recommended` with a recipe's values laid over."""
        values = {**self.values, **recipe, "train.seed": seed}
        return self.pool.pretrain(with_values(preset("recommended", "pretrain", self.method), values), self.clips(pool))

    def distilled(
        self, teacher: PooledRun, target: ShardSet, name: PresetName, seed: int, more: Mapping[str, Any] | None = None
    ) -> PooledRun:
        """Stage 2 on a set by a preset and `more`, of an encoder as wide as its teacher's."""
        sizes = {field: value for field, value in self.values.items() if field in ("model.channels", "model.dim")}
        values = {**sizes, **({"train.epochs": 1} if self.quick else {}), "train.seed": seed}
        return self.pool.distill(with_values(preset(name, "distill"), {**values, **(more or {})}), target, teacher)

    def scores(self, encoder: PooledRun | str, task: str, seed: int, test: bool) -> dict[str, float]:
        """`valid`, and `test` where asked for: accuracy of linear heads on the frozen encoder."""
        return score_once(self.out, self.evaluation(seed), self.task(task), encoder, self.pool.options, test=test)

    def evaluation(self, seed: int) -> Config:
        """Of linear heads; the architecture is that of the untrained encoder."""
        values = {**self.values, "train.seed": seed, "data.store": "resident"}
        read = {name: value for name, value in values.items() if name not in READ_BY}
        return with_values(preset("recommended", "linear"), read)


def opened(given: argparse.Namespace, quick: Mapping[str, Any]) -> Corpus:
    """The corpus of the flags. Raises UserError for a folder that is none."""
    folder = given.corpus.resolve()
    if not (folder / "tasks").is_dir() and not any((folder / name / "manifest.json").is_file() for name in POOLS):
        raise UserError(f"{given.corpus}: it has neither tasks/ nor packed sets; give a corpus folder (see --help)")
    values = {**sizes(given.width, given.method), "train.epochs": given.epochs, **(quick if given.quick else {})}
    values = {name: value for name, value in values.items() if given.method in READ_BY.get(name, (given.method,))}
    pool = RunPool(given.out / "runs", run_options(given.device, None, False, False))
    return Corpus(folder, given.out, given.method, values, pool, given.quick)


def sizes(width: int, method: MethodName) -> dict[str, Any]:
    """Fields of an encoder's width, of which 64 is the paper's; DECAR-v2's head in proportion, others as they are."""
    values = width_values(width)
    return values if method == "decar-v2" else {name: values[name] for name in ("model.channels", "model.dim")}


def main() -> None:
    """Parses, runs, writes."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of stage 1")
    parser.add_argument("--seeds", type=int, default=2, help="of the comparison")
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder's blocks; 64 is the paper's")
    parser.add_argument(
        "--recipe", action="append", help="'NAME: field=value field=value', in place of ours; repeatable"
    )
    text = "also run stage 2 on each task by this preset; repeatable"
    parser.add_argument("--stage2", action="append", choices=STAGE2, default=[], help=text)
    parser.add_argument("--search-only", action="store_true", help="train on the small pool only; the test is not read")
    parser.add_argument("--pool", choices=POOLS, default="pool", help="clips of the comparison")
    given = parser.parse_args()
    if given.seeds < 1:
        raise UserError(f"--seeds {given.seeds}: want at least 1")
    recipes = dict(recipe_of(text) for text in given.recipe or ())
    if given.method != "decar-v2" and not recipes:
        raise UserError(f"--method {given.method}: the recipes here are of decar-v2; give --recipe, such as 'plain:'")
    corpus = opened(given, QUICK)
    if len(recipes) != 1 or given.search_only:
        search(corpus, recipes or SEARCHED)
    if not given.search_only:
        pool, seeds = ("pool_small", 1) if given.quick else (given.pool, given.seeds)
        compare(corpus, recipes or COMPARED, pool, seeds, given.stage2)
    rows = write_runs(corpus.pool.directory)
    console.print(f"wrote {given.out / 'runs.parquet'}: {counted(len(rows), 'row')}")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what search.py has too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with pool.csv, pool_small.csv and tasks/, or packed sets")
    parser.add_argument("--out", type=Path, default=Path("corpus-run"))
    parser.add_argument("--method", choices=get_args(MethodName), default="decar-v2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true")
    return parser


def recipe_of(text: str) -> tuple[str, dict[str, Any]]:
    """'NAME: field=value field=value' -> name and values. Raises UserError for another form."""
    name, colon, values = text.partition(":")
    if not colon or not name.strip():
        raise UserError(f"--recipe '{text}': want 'NAME: field=value field=value'")
    return name.strip(), pairs(values.split())


def search(corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Recipes on the small pool with seed 0, by validation."""
    for name, encoder in encoders(corpus, recipes, "pool_small", 0):
        mean = fmean(corpus.scores(encoder, task, 0, False)["valid"] for task in corpus.tasks if task in JUDGED)
        console.print(f"corpus: {name}: {100 * mean:.1f} % of validation, mean of the judged tasks")


def compare(
    corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]], pool: str, seeds: int, stage2: Iterable[PresetName]
) -> None:
    """Recipes on a pool, and stage 2 from each by some presets, by validation and test, once a seed."""
    for seed in range(seeds):
        for _, encoder in encoders(corpus, recipes, pool, seed):
            for task in corpus.tasks:
                corpus.scores(encoder, task, seed, True)
            if isinstance(encoder, PooledRun):
                for name, task in itertools.product(stage2, corpus.tasks):
                    try:
                        run = corpus.distilled(encoder, corpus.task(task), name, seed)
                        corpus.scores(run, task, seed, True)
                    except UserError as error:
                        console.print(f"corpus: stage 2, {name}, on {task}, seed {seed}: {error}", style="yellow")


def encoders(
    corpus: Corpus, recipes: Mapping[str, Mapping[str, Any]], pool: str, seed: int
) -> Iterator[tuple[str, PooledRun | str]]:
    """Name and encoder: the baselines, then each recipe that could be trained."""
    yield from BASELINES.items()
    for name, values in recipes.items():
        try:
            yield name, corpus.trained(values, pool, seed)
        except UserError as error:
            console.print(f"corpus: {name}, seed {seed}: {error}", style="yellow")
        write_runs(corpus.pool.directory)


if __name__ == "__main__":
    run_app(main)
