"""The study behind docs/results/recordings.md: baselines, DECAR-v1, DECAR-v2 by three presets and UnFuSeD, over seeds
and sets.

python benchmarks/study.py --out DIR                    the embedded recordings, as in `unfused-fast demo`
python benchmarks/study.py --out DIR --shards SETS/pretraining --target SETS/one --target SETS/two
python benchmarks/study.py --out DIR --quick            does everything work? its numbers say nothing

Then, with --search, settings of stage 2 that could make it better than stage 1, and fields in which the presets `paper`
and `authors` leave `recommended`, one at a time. Stopped at any moment, the same command goes on: finished runs below
DIR/runs are never made twice. DIR gets study.json and results.md; --page writes the page itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from measure import write_part
from study_deviations import deviating, deviations
from study_page import page
from study_search import search, search_cells
from study_setup import Study, sized

from unfused_fast.commands.demo import TASKS, DemoSize, packed_set
from unfused_fast.commands.exits import run_app
from unfused_fast.commands.measure.machine import circumstances
from unfused_fast.commands.options import pairs, run_options
from unfused_fast.config import PresetName, with_values
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.evaluation import Plan
from unfused_fast.evaluation.ablation import STAGES
from unfused_fast.evaluation.intervals import scored
from unfused_fast.evaluation.measure import Measured, measure, refuse_label_fraction
from unfused_fast.evaluation.run_pool import PooledRun, RunPool
from unfused_fast.evaluation.table import comparisons, result_rows
from unfused_fast.shards.sets.shard_files import replace_file
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.stages import LabelledClips, labelled_clips, linear_round, rounds_of
from unfused_fast.training import write_json

LOG_MEL, RANDOM, RANDOM_B0, RANDOM_3 = "log-mel", "random", "random EfficientNet-B0", "random, student3"
DECAR1: dict[str, dict[str, Any]] = {"DECAR-v1, PIC": {}, "DECAR-v1, k-means": {"cluster.algo": "pca_kmeans"}}
"""By the preset `decar-v1`, with both clusterings that its paper compares (DECAR Table 3)."""
UNFUSED, UNFUSED_3 = "UnFuSeD, full", "UnFuSeD, student3"
DECAR2: dict[str, PresetName] = {f"DECAR-v2, {name}": name for name in ("recommended", "paper", "authors")}
DECAR = "DECAR-v2, recommended"
COMPARED = [
    *((name, RANDOM_B0) for name in DECAR1),
    *((name, RANDOM) for name in (*DECAR2, UNFUSED)),
    (UNFUSED_3, RANDOM_3),
    *((DECAR, name) for name in DECAR1),
    (UNFUSED, DECAR),
    (UNFUSED, UNFUSED_3),
    *((name, LOG_MEL) for name in (*DECAR1, DECAR, UNFUSED, UNFUSED_3)),
]
"""Which differences the page shows: each encoder beside its own architecture untrained, stages, log-mel."""
QUICK = DemoSize(seeds=1, epochs=1, width=4, clusters=8)
QUICK_VALUES = {"eval.epochs": 5, "pseudo.n_init": 1, "cluster.iterations": 2, "data.crop_seconds": 0.95}


def main() -> None:
    """Parses, runs, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("study-run"))
    parser.add_argument("--shards", type=Path, help="what stage 1 hears; the embedded recordings unless given")
    parser.add_argument("--target", type=Path, action="append", help="labelled set; SHARDS unless given; repeatable")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--epochs", type=int, help="of stage 1, for every preset; stage 2 takes half")
    parser.add_argument("--width", type=int, help="channels of AudioNTT's blocks; 64 is the paper's")
    parser.add_argument("--clusters", type=int, help="K of stage 1, for every preset")
    parser.add_argument("--set", dest="values", action="append", help="section.field=value for every encoder")
    parser.add_argument("--deviations", nargs="*", choices=STAGES, default=STAGES, help="of which stages; or of none")
    parser.add_argument("--search", action="store_true", help="what could make stage 2 better than stage 1")
    parser.add_argument("--page", type=Path, help="also write the page here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    base = QUICK if given.quick else DemoSize()
    chosen = {name: getattr(given, name) for name in asdict(base)}
    size = DemoSize(**{name: getattr(base, name) if value is None else value for name, value in chosen.items()})
    if given.target and not given.shards:
        raise UserError("--target names labelled sets for --shards; give --shards too")
    if size.seeds < 1:
        raise UserError(f"--seeds {size.seeds}: want at least 1")
    if given.shards:
        shards = open_shards(given.shards)
        targets = [open_shards(path) for path in given.target or [given.shards]]
    else:
        shards, targets = packed_set("union", given.out), [packed_set(task, given.out) for task in TASKS]
    options = run_options(given.device, None, False, False)
    study = Study(
        shards,
        targets,
        size,
        {**(QUICK_VALUES if given.quick else {}), **pairs(given.values)},
        tuple(given.deviations),
        given.search,
        given.out,
        RunPool(given.out / "runs", options),
    )
    refuse_unusable(study)
    result = {"quick": given.quick, **run_study(study), **circumstances(options.device)}
    result |= {"searched": [], "deviations": []}
    write(result, given.out, None)  # hours are behind it, and as many before all is done
    if study.search:
        result["searched"] = [search(study, target) for target in study.targets]
        write(result, given.out, None)
    result["deviations"] = [line for target in study.targets for line in deviations(study, target)]
    write(result, given.out, given.page)


def write(result: dict[str, Any], out: Path, part_of: Path | None) -> None:
    """OUT/study.json and results.md; the page's part between its markers."""
    write_json(out / "study.json", result)
    text = page(result)
    replace_file(out / "results.md", text.encode())
    if part_of is not None:
        write_part(part_of, "benchmarks/study.py", text)
    console.print(f"wrote {out / 'results.md'}" + (f" and {part_of}" if part_of else ""))


def refuse_unusable(study: Study) -> None:
    """Raises UserError for settings or a target that a stage would refuse, before stage 1 has run for hours."""
    for name in DECAR2.values():
        study.config(name, "pretrain")
    for values in DECAR1.values():
        with_values(study.config("decar-v1", "pretrain"), values)
    study.config("recommended", "distill")
    for stage in study.deviations:
        deviating(study, stage, 0)
    if study.search:
        search_cells(study)
    for seed in range(study.size.seeds):
        config = study.config("recommended", "linear", seed)
        refuse_label_fraction(config)
        for target in study.targets:
            rounds_of(labelled_clips(target, False), False, config.eval.valid_fraction, seed)
    for target in study.targets if study.deviations or study.search else []:
        linear_round(study.config("recommended", "linear"), target, None)


def run_study(study: Study) -> dict[str, Any]:
    """Trains and evaluates everything; the content of study.json but for circumstances and
    deviations.
    """
    failed: list[str] = []
    targets = [_target(study, target, failed) for target in study.targets]
    return {
        "size": asdict(study.size),
        "sized": sized(study),
        "values": study.values,
        "pretraining_clips": study.shards.manifest.splits["train"].clips,
        "targets": targets,
        "failed": list(dict.fromkeys(failed)),
    }


def _target(study: Study, target: ShardSet, failed: list[str]) -> dict[str, Any]:
    """Rows, comparisons and accuracies by seed of every encoder on one set."""
    measured: list[Measured] = []
    clips: LabelledClips | None = None
    for seed in range(study.size.seeds):
        for part, encoders in _encoders(study, target, seed, failed):
            config = with_values(study.config("recommended", "linear", seed), {"eval.encoder": part})
            console.print(f"study: {study.task(target)}, seed {seed}: {', '.join(encoders)}")
            runs = {name: [run] for name, run in encoders.items()}
            clips, found = measure(config, target, runs, Plan(), study.pool.options.device)
            measured += found
    if clips is None:
        raise UserError(f"no encoder could be trained: {'; '.join(failed)}")
    scores = scored(clips, measured, seed=0)
    found_pairs = comparisons(clips, scores)
    by_seed: dict[str, dict[int, float]] = {}
    for one in scores:
        by_seed.setdefault(one.found.encoder, {})[one.found.seed] = one.test
    return {
        "task": study.task(target),
        "classes": len(clips.label_names),
        "clips": {name: split.clips for name, split in target.manifest.splits.items()},
        "metric": "mAP" if clips.multi_label else "accuracy",
        "rows": result_rows(clips, scores),
        "pairs": [line for pair in COMPARED if (line := _pair(found_pairs, by_seed, *pair))],
    }


def _encoders(study: Study, target: ShardSet, seed: int, failed: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(`eval.encoder`, name -> run or baseline), each group of one architecture, which its random encoder has too.

    A run that fails is named in `failed` and left out.
    """

    def made(name: str, run: Callable[[], PooledRun]) -> PooledRun | None:
        try:
            return run()
        except UserError as error:
            console.print(f"study: {name}, seed {seed}: {error}", style="yellow")
            failed.append(f"{name}, seed {seed}: {error}")
            return None

    pretrain = study.pool.pretrain
    first = {
        name: run
        for name, chosen in DECAR2.items()
        if (run := made(name, partial(pretrain, study.config(chosen, "pretrain", seed), study.shards)))
    }
    config = study.config("decar-v1", "pretrain", seed)
    older = {
        name: run
        for name, values in DECAR1.items()
        if (run := made(name, partial(pretrain, with_values(config, values), study.shards)))
    }
    student = None
    if (teacher := first.get(DECAR)) is not None:
        student = made(
            f"UnFuSeD on {study.task(target)}",
            lambda: study.pool.distill(study.config("recommended", "distill", seed), target, teacher),
        )
    if first:
        paths = {name: str(run.path) for name, run in first.items()}
        yield (
            "full",
            {LOG_MEL: "logmel", RANDOM: "random", **paths, **({UNFUSED: str(student.path)} if student else {})},
        )
    if student is not None:
        yield "student3", {RANDOM_3: "random", UNFUSED_3: str(student.path)}
    if older:
        yield "full", {RANDOM_B0: "random", **{name: str(run.path) for name, run in older.items()}}


def _pair(
    found: Sequence[dict[str, Any]], by_seed: dict[str, dict[int, float]], first: str, second: str
) -> dict[str, Any] | None:
    """first - second, whichever way round it was compared; over the seeds of both; None where there is none."""
    for pair in found:
        if {pair["first"], pair["second"]} == {first, second}:
            sign = 1 if pair["first"] == first else -1
            return {
                "first": first,
                "second": second,
                "difference": sign * pair["difference"],
                "interval": sorted(sign * end for end in pair["interval"]),
                "by_seed": [by_seed[first][seed] - by_seed[second][seed] for seed in pair["seeds"]],
            }
    return None


if __name__ == "__main__":
    run_app(main)
