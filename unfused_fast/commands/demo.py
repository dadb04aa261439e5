"""The main job: pack the embedded recordings, run the three stages with several seeds, print one table.

Pre-training sees the training clips of both sets without labels; each set is a target of its own: spoken prompts (5
languages) and instrument notes (11 families). Every figure of the table is measured by this run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unfused_fast.commands.measure.parts import log_of
from unfused_fast.config import Config, Stage, preset, with_values
from unfused_fast.console import console
from unfused_fast.errors import Interrupted
from unfused_fast.evaluation import markdown, mean_and_error, percent
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.demo import demo_rows, union_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.stages import distill, linear, pretrain
from unfused_fast.training import Options, plot_confusions, plot_curves, quietly, write_json

Task = Literal["spoken-prompts", "instrument-notes"]
TASKS: dict[Task, str] = {"spoken-prompts": "languages", "instrument-notes": "families"}
LABEL_SHARES = (1.0, 0.1)
ROWS = ("log-mel mean and std", "random encoder", "DECAR-v2 (stage 1)", "UnFuSeD (stage 2)")


@dataclass(frozen=True)
class DemoSize:
    """What makes the demo longer or shorter. Ours: the defaults fit two cores and ten minutes."""

    seeds: int = 3
    epochs: int = 40
    """Of pre-training; distillation takes half of them, as in the paper (100 and 50)."""
    width: int = 16
    """Channels of the convolution blocks; the other widths follow in the paper's proportion (64 is the paper's
    encoder).
    """
    clusters: int = 64


def stage_config(stage: Stage, size: DemoSize, seed: int) -> Config:
    """The recommended preset at the demo's size."""
    return with_values(preset("recommended", stage), {**size_values(stage, size), "train.seed": seed})


def width_values(width: int) -> dict[str, Any]:
    """Channels of AudioNTT's blocks, and the other widths in the paper's proportion; 64 is the paper's encoder."""
    return {
        "model.channels": width,
        "model.dim": 32 * width,
        "model.proj_hidden": 32 * width,
        "model.proj_dim": 8 * width,
    }


def size_values(stage: Stage, size: DemoSize, widths: bool = True) -> dict[str, Any]:
    """What a size sets in any preset, with AudioNTT's `widths` or without: 819 clips need smaller batches and fewer
    clusters than 250,000.
    """
    values: dict[str, Any] = {**(width_values(size.width) if widths else {}), "cluster.k": size.clusters}
    if stage == "pretrain":
        values |= {"train.epochs": size.epochs, "train.batch_size": 64}
    if stage == "distill":
        values |= {"train.epochs": max(1, size.epochs // 2), "train.batch_size": 32}
    return values


def run_demo(out: Path, size: DemoSize, options: Options) -> dict[str, Any]:
    """Runs everything below `out`; returns the table's numbers, the sizes and where the files are."""
    start = time.perf_counter()
    union = packed_set("union", out)
    targets = {task: packed_set(task, out) for task in TASKS}
    results: list[dict[str, Any]] = []
    for seed in range(size.seeds):
        console.print(f"demo: seed {seed + 1} of {size.seeds}")
        results += _one_seed(out, union, targets, size, seed, options)
    table = [
        {
            "encoder": name,
            **{
                f"{TASKS[task]}, {share:.0%} of labels": _spread(
                    [r["test"] for r in results if (r["row"], r["task"], r["label_fraction"]) == (name, task, share)]
                )
                for task in TASKS
                for share in LABEL_SHARES
            },
        }
        for name in ROWS
    ]
    curves, confusions = out / "curves.png", out / "confusion.png"
    _draw(out, results, size, curves, confusions)
    summary = {
        "table": table,
        "metric": "test accuracy, mean and standard error over seeds",
        "size": {
            "seeds": size.seeds,
            "epochs": size.epochs,
            "distill_epochs": max(1, size.epochs // 2),
            "width": size.width,
            "k": size.clusters,
        },
        "clips": {"pre-training": union.manifest.splits["train"].clips}
        | {
            TASKS[task]: {name: split.clips for name, split in shards.manifest.splits.items()}
            for task, shards in targets.items()
        },
        "chance": {TASKS[task]: round(1 / len(shards.manifest.label_names), 3) for task, shards in targets.items()},
        "runs": str(out),
        "curves": str(curves),
        "confusion": str(confusions),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "demo.json", summary)
    (out / "demo.md").write_text(markdown(*demo_table(summary)) + "\n", encoding="utf-8")
    return summary


def demo_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text: mean ± standard error, in per cent."""
    columns = list(summary["table"][0])
    cells = [[percent(*row[column].values()) for column in columns[1:]] for row in summary["table"]]
    return columns, [[row["encoder"], *texts] for row, texts in zip(summary["table"], cells, strict=True)]


def packed_set(name: Task | Literal["union"], out: Path) -> ShardSet:
    """A set of the demo, or the training clips of both, packed below `out` once."""
    directory = out / "shards" / name
    if (directory / "manifest.json").exists():
        return open_shards(directory)
    rows = union_rows() if name == "union" else demo_rows(name)
    try:
        packed = pack(rows, directory, statistics=log_mel_statistics)
    except Interrupted as error:  # by the same command alone OUT would be refused
        raise Interrupted(f"{directory}: stopped; run the same command again with --resume to continue") from error
    console.print(f"demo: packed {packed.packed} clips of {name} in {packed.wall_seconds:.1f} s")
    return packed.shard_set


def _one_seed(
    out: Path, union: ShardSet, targets: dict[Task, ShardSet], size: DemoSize, seed: int, options: Options
) -> list[dict[str, Any]]:
    folder = out / f"seed-{seed}"
    pretrain(stage_config("pretrain", size, seed), union, folder / "pretrain", options)
    results = []
    for task, shards in targets.items():
        distilled = folder / f"distill-{task}"
        distill(stage_config("distill", size, seed), shards, folder / "pretrain", distilled, options)
        encoders = zip(ROWS, ("logmel", "random", str(folder / "pretrain"), str(distilled)), strict=True)
        console.print(f"demo: linear evaluation of {len(ROWS)} encoders on {TASKS[task]}")
        for row, (name, encoder) in enumerate(encoders):
            for share in LABEL_SHARES:
                config = with_values(stage_config("linear", size, seed), {"eval.label_fraction": share})
                with quietly():
                    result = linear(config, shards, encoder, folder / f"linear-{task}-{row}-{share:g}", options)
                results.append({"row": name, **result})
    return results


def _spread(values: list[float]) -> dict[str, float | None]:
    mean, error = mean_and_error(values)
    return {"mean": round(mean, 4), "standard_error": None if error is None else round(error, 4)}


def _draw(out: Path, results: list[dict[str, Any]], size: DemoSize, curves: Path, confusions: Path) -> None:
    logs = [(f"seed {seed}", log_of(out / f"seed-{seed}" / "pretrain")) for seed in range(size.seeds)]
    quantities = [
        ("loss", "pre-training loss"),
        ("nmi", "NMI to the epoch before"),
        ("perplexity", "cluster perplexity"),
        ("effective_rank", "effective rank of the bank"),
        ("mean_direction", "norm of the bank's mean direction"),
        ("clips_per_second", "clips/s"),
    ]
    plot_curves(curves, logs, quantities)
    shown = [
        (f"{TASKS[task]}: {name}, seed 0, test {r['test']:.3f}", r["confusion"], r["label_names"])
        for task in TASKS
        for name in ROWS[2:]
        for r in results
        if (r["row"], r["task"], r["label_fraction"], r["seed"]) == (name, task, 1.0, 0)
    ]
    plot_confusions(confusions, shown)
