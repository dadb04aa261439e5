"""The rows of runs.parquet as recipes: their seeds, means over the judged tasks, the best of each method, and whether
short runs rank them as long ones do.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple, get_args

from scipy.stats import spearmanr

from unfused_fast.config import MethodName, PresetName, Stage, flatten, preset
from unfused_fast.config.methods import RECIPES
from unfused_fast.console import counted
from unfused_fast.evaluation.compare_report import TITLES
from unfused_fast.evaluation.run_store import settings_of

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
WIDTHS = ("model.channels", "model.dim", "train.epochs")
HEAD = ("model.proj_hidden", "model.proj_dim")
"""Fields of a run's size; of DECAR-v2 the head's widths too, which go with the encoder's."""
PAPER_WIDTH = 64
FIRST = "stage 1: "
"""Before a setting of the run that stage 2 began from."""
FEWEST = 3
"""Recipes with which ranks are compared."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Trained:
    """A recipe on a set, at a size: its runs, one a seed."""

    method: str
    stage: str | None
    """None: a baseline."""
    settings: tuple[tuple[str, str], ...]
    """(field, value as JSON) where it differs from `recommended`, without its size; of stage 2 its teacher's too, with
    the teacher's set and epochs.
    """
    set: str
    """With its clips; empty for baselines, and for stage 2 on each task by itself."""
    width: int
    epochs: int | None
    """As planned."""
    judged: tuple[str, ...]
    """Tasks of the mean."""
    rows: Rows

    @property
    def title(self) -> str:
        """As in tables; UnFuSeD's stage 1 is DECAR-v2 unless another is named."""
        name = TITLES.get(self.method, self.method)
        if self.stage == "distill":
            return "UnFuSeD" if self.method == "decar-v2" else f"UnFuSeD, from {name}"
        return name

    @property
    def label(self) -> str:
        """As in pictures."""
        preset = "" if self.stage is None else f", {self.preset or 'changed'}"
        return f"{self.title}{preset}" + (f" (width {self.width})" if self.width else "")

    @property
    def words(self) -> str:
        """Its settings, for a cell."""
        of_teacher = [item for item in self.settings if item[0].startswith(FIRST)]
        own, teacher = (
            " ".join(f"`{name}={json.loads(value)}`" for name, value in of) for of in (self.own.items(), of_teacher)
        )
        return ", ".join(filter(None, [self.preset or own, teacher]))

    @property
    def own(self) -> dict[str, str]:
        """Its settings without its teacher's."""
        return {name: value for name, value in self.settings if not name.startswith(FIRST)}

    @property
    def preset(self) -> str | None:
        """The preset by whose settings it was trained."""
        return next((name for name, settings in _presets(self.stage, self.method) if settings == self.own), None)

    def scores(self, task: str, split: str) -> dict[int, float]:
        """Seed -> score of linear heads on the encoder as it ended."""
        found = {
            row["seed"]: row["score"]
            for row in self.rows
            if (row["task"], row["split"], row["head"], row["state"]) == (task, split, "linear", "done")
        }
        return dict(sorted(found.items()))

    def mean(self, split: str) -> dict[int, float]:
        """Seed -> mean over the judged tasks; without seeds that lack one of them."""
        tasks = [self.scores(task, split) for task in self.judged]
        seeds = set[int].intersection(*map(set, tasks)) if tasks else set()
        return {seed: fmean(scores[seed] for scores in tasks) for seed in sorted(seeds)}

    def cost(self, name: str) -> list[float]:
        """`clips_seen` or `seconds` of each run."""
        of_runs = {row["run"]: row[name] for row in sorted(self.rows, key=lambda row: row["epoch"] or 0)}
        return [value for value in of_runs.values() if value is not None]

    @property
    def ends(self) -> str:
        """How its runs ended, for a cell."""
        states = defaultdict[str, set[str]](set)
        for row in self.rows:
            states[f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]].add(row["run"])
        return "; ".join(state if len(runs) == 1 else f"{state} ({len(runs)})" for state, runs in states.items())


class Agreement(NamedTuple):
    """Whether recipes of a method rank alike at two sizes: Spearman's rank correlation of their mean validation."""

    method: str
    small: str
    large: str
    recipes: int
    correlation: float | None
    """None where all score alike at one size."""


def width_of(row: Mapping[str, Any]) -> int:
    """Channels of the encoder's blocks."""
    return int(json.loads(row["config"]).get("model.channels", PAPER_WIDTH))


def judged(rows: Rows) -> list[str]:
    """The tasks of the mean: of JUDGED those with scores, or all where none of them is there."""
    tasks = list(dict.fromkeys(row["task"] for row in rows if row["task"]))
    return [task for task in JUDGED if task in tasks] or tasks


def trained(rows: Rows) -> list[Trained]:
    """The rows of runs.parquet as recipes; linear heads by themselves are none."""
    groups = defaultdict[tuple[Any, ...], list[Mapping[str, Any]]](list)
    tasks, teachers = {row["task"] for row in rows}, dict[str, list[tuple[str, str]]]()
    for row in rows:
        if row["stage"] == "pretrain" and row["run"] not in teachers:
            config = json.loads(row["config"])
            epochs = config.get("train.epochs", _epochs("pretrain"))
            of = {"set": json.dumps(_set(row)), "epochs": json.dumps(epochs)}
            of |= _settings(config, "pretrain", row["method"])
            teachers[row["run"]] = [(f"{FIRST}{name}", value) for name, value in of.items()]
    for row in rows:
        if row["stage"] == "linear" or row["state"] == "damaged":
            continue
        config = json.loads(row["config"])
        width = width_of(row)
        settings, epochs = tuple[tuple[str, str], ...](), None
        if row["stage"] is not None:
            settings = (*_settings(config, row["stage"], row["method"]).items(), *teachers.get(row["teacher"], ()))
            epochs = config.get("train.epochs", _epochs(row["stage"]))
        elif row["method"] == "logmel":
            width = 0
        alone = row["stage"] == "distill" and row["set"] in tasks and row["task"] in (row["set"], None)
        shards = "" if alone else _set(row)
        groups[(row["method"], row["stage"], settings, shards, width, epochs)].append(row)
    wanted = tuple(judged(rows))
    return [
        Trained(method, stage, settings, shards, width, epochs, wanted, several)
        for (method, stage, settings, shards, width, epochs), several in groups.items()
    ]


def _set(row: Mapping[str, Any]) -> str:
    return f"{row['set']}, {row['clips']:,} clips" if row["set"] and row["clips"] else row["set"] or ""


def _settings(config: Mapping[str, Any], stage: Stage, method: str) -> dict[str, str]:
    sized = {*WIDTHS, *(HEAD if stage == "pretrain" and method == "decar-v2" else ())}
    found = settings_of({"method.name": method, **config}, stage)
    return {name: json.dumps(value) for name, value in sorted(found.items()) if name not in sized}


@cache
def _epochs(stage: Stage) -> int:
    return preset("recommended", stage).train.epochs


@cache
def _presets(stage: Stage, method: MethodName) -> list[tuple[str, dict[str, str]]]:
    """Name and settings of each preset of a stage."""
    names = RECIPES.get(method, ()) if stage == "pretrain" else get_args(PresetName)
    configs = {name: flatten(preset(name, stage, method if stage == "pretrain" else None)) for name in names}
    return [(name, _settings(config, stage, method)) for name, config in configs.items()]


def best(recipes: Sequence[Trained]) -> list[Trained]:
    """Baselines, then of each method at each width the best and, where its test was read, `recommended` on the same
    clips for as many epochs; of stage 2 the best of each preset. The highest validation first.
    """
    groups = defaultdict[tuple[Any, ...], list[Trained]](list)
    for one in recipes:
        if one.stage is not None and one.mean("valid"):
            groups[(one.method, one.stage, one.width, one.preset if one.stage == "distill" else None)].append(one)
    chosen = []
    for several in groups.values():
        tested = [one for one in several if one.mean("test")]
        first = max(tested or several, key=lambda one: fmean(one.mean("valid").values()))
        size = first.set, first.width, first.epochs
        beside = [one for one in tested if not one.settings and (one.set, one.width, one.epochs) == size]
        chosen += [first, *(one for one in beside if one is not first)]
    widths = {one.width for one in chosen} | {0}
    plain = [one for one in recipes if one.stage is None and (one.width in widths or not chosen)]
    return [
        *sorted(plain, key=lambda one: (one.method, one.width)),
        *sorted(chosen, key=lambda one: -fmean(one.mean("valid").values())),
    ]


def agreement(rows: Rows) -> list[Agreement]:
    """Of each method, each pair of sizes (set, width, epochs) at which FEWEST recipes or more were trained."""
    sizes = defaultdict[str, dict[tuple[int, str], dict[Any, float]]](lambda: defaultdict(dict))
    for one in trained(rows):
        if one.stage == "pretrain" and (means := one.mean("valid")):
            seen = max(map(int, one.cost("clips_seen")), default=0)
            size = (seen * one.width, f"{one.epochs} epochs of {one.set}, width {one.width}")
            sizes[one.method][size][one.settings] = fmean(means.values())
    found = []
    for method, of in sizes.items():
        for (small, these), (large, those) in itertools.combinations(sorted(of.items(), key=lambda item: item[0]), 2):
            shared = [settings for settings in these if settings in those]
            if len(shared) >= FEWEST:
                pairs = [these[one] for one in shared], [those[one] for one in shared]
                ranks = float(spearmanr(*pairs).statistic) if min(map(len, map(set, pairs))) > 1 else None
                found.append(Agreement(method, small[1], large[1], len(shared), ranks))
    return found


def agreement_text(line: Agreement) -> str:
    """As a sentence."""
    name, recipes = TITLES.get(line.method, line.method), counted(line.recipes, "recipe")
    ranks = (
        "no rank correlation, all alike" if line.correlation is None else f"rank correlation {line.correlation:+.2f}"
    )
    return f"{name}: {recipes} at {line.small} and at {line.large}, {ranks}"
