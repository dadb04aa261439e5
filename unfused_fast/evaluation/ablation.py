"""Ablations: cells of settings that differ in a few fields, each run with several seeds, and one table.

OUT/runs/                                   a run pool: runs that cells share are made once
OUT/runs.parquet                            the runs and their scores (run_store.py)
OUT/ablation.json, ablation.md, .png        the table, written again after each cell and seed

After a stop at any moment the same command continues; one with more values, fields or seeds adds to what is there. The
table holds what the last command named.
Ours; the tables it is made for are DECAR's Table 3 and the like.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from unfused_fast.config import READ_BY, Config, Stage, flatten, with_values
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.evaluation.report import (
    TextTable,
    claim,
    ending,
    held_out_text,
    not_shown_text,
    outcome,
    spread,
    spread_text,
    write_report,
)
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.evaluation.run_store import write_runs
from unfused_fast.json_files import read_json
from unfused_fast.models import Cost, encoder_cost
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import linear_round
from unfused_fast.training import draw, plot_errors

Ablated = Literal["pretrain", "distill", "linear"]
Varied = Literal[Ablated, "all"]
STAGES: tuple[Ablated, ...] = ("pretrain", "distill", "linear")
TRAINED = ("frontend", "data", "aug", "model", "optim", "train")
READS: dict[Stage, frozenset[str]] = {
    "pretrain": frozenset([*TRAINED, "method", "views", "cluster", "prototypes", "loss", "bank"]),
    "distill": frozenset([*TRAINED, "views", "pseudo", "distill", "loss"]),
    "linear": frozenset({"eval"}),
}
"""Sections of the config that change the result of a stage; stage 3 takes the others from the encoder's run."""
COLUMNS = ("settings", "seeds", "valid", "test", "to base", "parameters", "MACs", "seconds", "trouble")


@dataclass(frozen=True)
class Cell:
    """One combination of settings."""

    values: dict[str, Any]
    """Varied field -> value; empty for the base, with which all others are compared."""
    configs: dict[Stage, Config]

    @property
    def name(self) -> str:
        """`cluster.k=256 distill.beta=0.0`, or `base`."""
        return " ".join(f"{name}={_text(value)}" for name, value in self.values.items()) or "base"


def cells_of(
    configs: Mapping[Stage, Config], varied: Varied, values: Mapping[str, Sequence[Any]], one_at_a_time: bool
) -> list[Cell]:
    """Each combination of the fields' values; or one at a time: the base, then each value that differs from the base's,
    alone.

    A value goes to the stages of `varied` that read its section. Raises UserError for an unknown field or value, as
    `--set` does, for values that contradict each other, and for a field that no stage reads.
    """
    stages = STAGES if varied == "all" else (varied,)
    for name, given in values.items():
        if name not in flatten(Config()):
            _varied(Config(), {name: given[0]})
        if name == "train.seed":
            raise UserError("--vary train.seed: seeds are repetitions of each cell; use --seeds")
        readers = [stage for stage in STAGES if _reads(stage, name)]
        if not {*readers} & {*stages}:
            raise UserError(f"--vary {name}: --stage {varied} does not read it; use --stage {readers[0]}, or all")
    if one_at_a_time:
        chosen = [{}, *({name: value} for name, given in values.items() for value in given)]
    else:
        chosen = [dict(zip(values, picked, strict=True)) for picked in itertools.product(*values.values())]
    cells: dict[str, Cell] = {}
    for picked in chosen:
        made, typed = dict(configs), dict[str, Any]()
        for stage in stages:
            read = {name: value for name, value in picked.items() if _reads(stage, name)}
            made[stage] = _varied(configs[stage], read)
            typed |= {name: flatten(made[stage])[name] for name in read}
        cell = Cell({name: typed[name] for name in picked}, made)
        if not (one_at_a_time and cells and made == cells["base"].configs):
            cells.setdefault(cell.name, cell)
    return list(cells.values())


def _varied(config: Config, values: Mapping[str, Any]) -> Config:
    """As with_values, whose UserError names the flag that gave the values."""
    try:
        return with_values(config, values)
    except UserError as error:
        raise UserError(re.sub("^--set ", "--vary ", str(error))) from error


def _reads(stage: Ablated, name: str) -> bool:
    """Whether a field changes the result of a stage; what only some methods read does so of pre-training alone."""
    own = stage != "pretrain" and "decar-v2" not in READ_BY.get(name, ("decar-v2",))
    return name.split(".")[0] in READS[stage] and not own


def ablate(
    cells: Sequence[Cell], varied: Varied, shards: ShardSet, target: ShardSet, out: Path, seeds: int, pool: RunPool
) -> dict[str, Any]:
    """Runs every cell with seeds S, S + 1, ... of its own `train.seed` S; returns the content of ablation.json.

    Stage 1 trains on `shards`, stages 2 and 3 on `target`; `varied` = pretrain evaluates the encoder of stage 1, all
    others that of stage 2. A run that ends in a UserError, such as one that diverges, is a row of the table with its
    reason. Raises UserError for an `out` or a target that cannot be used, Interrupted after Ctrl-C.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: want at least 1")
    found = list[dict[str, Any]]()
    # raises stage 3's UserError for any cell and seed before stage 1 runs for hours
    seeded = (_seeded(cell, number)["linear"] for cell, number in itertools.product(cells, range(seeds)))
    for config in dict.fromkeys(seeded):
        linear_round(config, target, pool.holdout)
    part: Stage = "pretrain" if varied == "pretrain" else "distill"
    described = [
        (cell.name, cell.values, encoder_cost(cell.configs[part], cell.configs["linear"].eval.encoder))
        for cell in cells
    ]
    claim(out, "an ablation")
    before = _results_in(out)
    for number, cell in itertools.product(range(seeds), cells):
        seed = cell.configs["pretrain"].train.seed + number
        console.print(f"ablate: {cell.name}, seed {seed}")
        try:
            line = _run_cell(_seeded(cell, number), part, shards, target, pool)
        except UserError as error:
            console.print(f"ablate: {cell.name}, seed {seed}: {error}", style="yellow")
            line = {"reason": str(error)}
        found.append({"cell": cell.name, "seed": seed, **line})
        summary = summary_of(described, found, varied, target, out, pool.holdout)
        shown = _results_of(summary)
        summary["not_shown"] = [text for text in before if text not in shown]
        write_report(out, "ablation", summary, [ablation_table(summary)], ablation_sentences(summary))
        write_runs(pool.directory)
    write_picture(out, summary)
    return summary


def _results_in(out: Path) -> list[str]:
    """The results of earlier commands in OUT; none where its ablation.json is of an earlier version, or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _results_of(read_json(out / "ablation.json"))
    return []


def _results_of(summary: Mapping[str, Any]) -> list[str]:
    """`cluster.k=256, seed 0 (linear-DIGEST)` of each result that a summary shows, then of those that it does not."""
    shown = [
        f"{row['settings']}, seed {seed} ({Path(runs[-1]).name})"
        for row in summary["rows"]
        for seed, runs in zip(row["seeds"], row["runs"], strict=True)
    ]
    return [*shown, *summary.get("not_shown", ())]


def _run_cell(
    configs: Mapping[Stage, Config], part: Stage, shards: ShardSet, target: ShardSet, pool: RunPool
) -> dict[str, Any]:
    runs = [pool.pretrain(configs["pretrain"], shards)]
    if part == "distill":
        runs.append(pool.distill(configs["distill"], target, runs[0]))
    runs.append(pool.linear(configs["linear"], target, runs[-1]))
    scores = runs[-1].result
    return {
        "valid": scores["valid"],
        "test": scores["test"],
        "seconds": round(sum(run.result["seconds"] for run in runs), 2),
        "runs": [str(run.path) for run in runs],
    }


def _seeded(cell: Cell, number: int) -> dict[Stage, Config]:
    """The cell's configs with its seed plus `number`."""
    seed = cell.configs["pretrain"].train.seed + number
    return {stage: with_values(config, {"train.seed": seed}) for stage, config in cell.configs.items()}


def _text(value: Any) -> str:
    return (",".join(map(str, value)) or "()") if isinstance(value, tuple) else str(value)


def summary_of(
    cells: Sequence[tuple[str, dict[str, Any], Cost]],
    found: Sequence[dict[str, Any]],
    varied: str,
    target: ShardSet,
    out: Path,
    holdout: float | None,
) -> dict[str, Any]:
    """Cells (name, varied values, cost) and the outcome of each seed -> the content of ablation.json; shares of 1.

    `difference` is test minus the base's test over the seeds that both finished; None without a cell `base`.
    """
    base = {line["seed"]: line for line in found if line["cell"] == "base" and "reason" not in line}
    rows = []
    for name, values, cost in cells:
        lines = [line for line in found if line["cell"] == name]
        done = [line for line in lines if "reason" not in line]
        tested = [line for line in done if line["test"] is not None]
        pairs = [
            line["test"] - base[line["seed"]]["test"] for line in tested if name != "base" and line["seed"] in base
        ]
        rows.append(
            {
                "settings": name,
                "values": values,
                **outcome(lines),
                "valid": spread([line["valid"] for line in done]),
                "test": spread([line["test"] for line in tested]),
                "difference": spread(pairs),
                **asdict(cost),
                "seconds": spread([line["seconds"] for line in done]),
                "runs": [line["runs"] for line in done],
            }
        )
    facts = {"stage": varied, "task": target.name, "metric": "accuracy", "holdout": holdout}
    return {**facts, "rows": rows, "run": str(out)}


def ablation_table(summary: Mapping[str, Any]) -> TextTable:
    """The rows as text, accuracies in per cent with standard errors over seeds."""
    encoder, held = "1" if summary["stage"] == "pretrain" else "2", held_out_text(summary["holdout"])
    title = f"{summary['task']}: accuracy in % of stage {encoder}'s encoder, mean ± standard error over seeds{held}"
    rows = []
    for row in summary["rows"]:
        scores = [spread_text(row["valid"]), spread_text(row["test"]), spread_text(row["difference"], "+")]
        cost = [f"{row[name]:,}" for name in ("parameters", "macs")]
        rows.append([row["settings"], str(len(row["seeds"])), *scores, *cost, *ending(row)])
    return title, COLUMNS, rows


def ablation_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Text below the table: what it does not show."""
    return not_shown_text(summary, "values and seeds")


def write_picture(out: Path, summary: Mapping[str, Any]) -> None:
    """OUT/ablation.png: validation and test accuracy of each cell that finished, bars of one standard error."""
    shown = [row for row in summary["rows"] if row["seeds"]]
    points = {
        name: [
            (100 * row[name]["mean"], 100 * (row[name]["standard_error"] or 0.0)) if row[name]["seeds"] else None
            for row in shown
        ]
        for name in ("valid", "test")
    }
    if shown:
        names, title = [row["settings"] for row in shown], f"{summary['task']}: accuracy in %"
        draw(out / "ablation.png", plot_errors, names, points, title)
