"""Frozen encoders on a labelled set: linear heads and nearest neighbours, with few labels and many, by splits or folds.

N clips, T test recordings, D features, C classes. Heads are those of train linear; test is read once a head. Features
of a recording are the mean of its pieces': the scores of a linear head are then the mean of its scores for the pieces.
Source of the linear head: paper section 3, part 3. Ours: nearest neighbours, few labels, intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import BASELINES, Config, with_values
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.evaluation.neighbours import neighbour_shares
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import (
    FrozenEncoder,
    LabelledClips,
    Round,
    Rows,
    Split,
    baseline_encoder,
    eval_features,
    few_labels,
    labelled_clips,
    load_encoder,
    metric_of,
    permuted,
    rounds_of,
    say_heard,
    train_heads,
)

Method = Literal["linear", "knn"]


@dataclass(frozen=True)
class Plan:
    """What is measured of each encoder."""

    methods: tuple[Method, ...] = ("linear",)
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the train labels, each greater than 0 and at most 1."""
    by_folds: bool = False
    seeds: int = 1
    """Repetitions: seeds of the order of batches, of few labels, of held-out validation, and of the random encoder."""
    holdout: float | None = None
    """Share of the train recordings that are the test, of a set without one."""

    def __post_init__(self) -> None:
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UserError(
                    f"--label-fraction {fraction:g}: want numbers with 0 < fraction <= 1, such as 0.01,0.1,1"
                )
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: want at least 1")


@dataclass(frozen=True)
class Measured:
    """One encoder, method, share of labels and repetition: scores of every test recording, once."""

    encoder: str
    method: Method
    fraction: float
    run: str
    seed: int
    rows: Rows
    """(T,) rows of LabelledClips, one a recording that was tested on, round after round."""
    round_of: Rows
    """(T,) number of the round that tested the row."""
    scores: NDArray[np.float32]
    """(T, C) larger where a class is likelier; the prediction of a single label is the argmax."""
    valid: float
    """Metric on validation, mean over rounds; of nearest neighbours, which choose nothing, for information."""
    rates: tuple[float | None, ...]
    """Learning rate that validation chose in each round; None for nearest neighbours."""
    train_clips: int
    """Clips that were learnt from, in the first round, and"""
    train_recordings: int
    """the recordings that they are pieces of: labels used."""
    test_clips: int
    """Clips that the T test recordings consist of."""
    features: int
    """D."""


def refuse_label_fraction(config: Config) -> None:
    """Raises UserError for a config with few labels, which `train linear` reads; here Plan.fractions says it."""
    if (fraction := config.eval.label_fraction) != 1:
        raise UserError(
            f"eval.label_fraction = {fraction:g}: only train linear reads it; use --label-fraction {fraction:g}"
        )


def measure(
    config: Config,
    shards: ShardSet,
    encoders: Mapping[str, Sequence[str]],
    plan: Plan,
    device: torch.device,
) -> tuple[LabelledClips, list[Measured]]:
    """Measures every encoder: name -> runs of it (directories), or the baselines `random` and `logmel`.

    `random` has the architecture of the first run, or of the config where there is none. Raises UserError for a set or
    run that cannot be evaluated.
    """
    refuse_label_fraction(config)
    clips = labelled_clips(shards, plan.by_folds, holdout=plan.holdout)
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, plan.by_folds, config.train.seed))
    seeds = [config.train.seed + number for number in range(plan.seeds)]
    rounds = {seed: rounds_of(clips, plan.by_folds, config.eval.valid_fraction, seed) for seed in seeds}
    loaded = {
        run: load_encoder(Path(run), device) for runs in encoders.values() for run in runs if run not in BASELINES
    }
    say_heard(list(loaded), shards, clips)
    architecture = next(iter(loaded.values())).config if loaded else config
    found = []
    for name, runs in encoders.items():
        for run in runs:
            for seed, frozen, features in _features(config, architecture, shards, clips, run, loaded, seeds, device):
                of = name if name == frozen.name else f"{name} ({frozen.name})"
                console.print(f"evaluate: {of}, seed {seed}, {features.shape[1]} features")
                found += list(_measure_one(config, clips, rounds[seed], plan, name, run, seed, features))
    return clips, found


def _features(
    config: Config,
    architecture: Config,
    shards: ShardSet,
    clips: LabelledClips,
    run: str,
    loaded: Mapping[str, FrozenEncoder],
    seeds: Sequence[int],
    device: torch.device,
) -> Iterator[tuple[int, FrozenEncoder, Tensor]]:
    """(seed, encoder, features (N, D)): computed once, but for the random encoder, which every seed makes anew."""
    features: Tensor | None = None
    for seed in seeds:
        if features is None or run == "random":
            seeded = with_values(architecture, {"train.seed": seed})
            frozen = loaded[run] if run in loaded else baseline_encoder(run, seeded, device)
            parts = eval_features(frozen, config, shards, clips.splits, device)
            features = torch.cat([parts[split] for split in clips.splits])[torch.from_numpy(clips.kept).to(device)]
        yield seed, frozen, features


def _measure_one(
    config: Config,
    clips: LabelledClips,
    rounds: Sequence[Round],
    plan: Plan,
    name: str,
    run: str,
    seed: int,
    features: Tensor,
) -> Iterator[Measured]:
    """Every method and share of labels on one encoder's features (N, D)."""
    config = with_values(config, {"train.seed": seed})
    for fraction in plan.fractions:
        chosen = [few_labels(clips, part.train, fraction, seed) for part in rounds]
        tests = [clips.recordings(part.test).rows for part in rounds]
        for method in plan.methods:
            tested = [
                _test(config, clips, part, rows, features, method) for part, rows in zip(rounds, chosen, strict=True)
            ]
            yield Measured(
                name,
                method,
                fraction,
                run,
                seed,
                np.concatenate(tests),
                np.repeat(np.arange(len(rounds)), [len(rows) for rows in tests]),
                np.concatenate([scores for scores, _, _ in tested]),
                float(np.mean([valid for _, valid, _ in tested])),
                tuple(rate for _, _, rate in tested),
                len(chosen[0]),
                len(clips.recordings(chosen[0]).rows),
                sum(len(part.test) for part in rounds),
                features.shape[1],
            )


def _test(
    config: Config, clips: LabelledClips, part: Round, train: Rows, features: Tensor, method: Method
) -> tuple[NDArray[np.float32], float, float | None]:
    """Scores (T, C) of a round's test recordings, the metric on its validation's, and the chosen learning rate.

    Heads learn from clips. The neighbours are recordings, as the queries are: were they clips, the pieces of one long
    recording could be all k.
    """
    settings, classes = config.eval, len(clips.label_names)
    if settings.standardize:
        learnt = features[torch.from_numpy(train).to(features.device)]
        mean, std = learnt.mean(dim=0), learnt.std(dim=0, correction=0)
        features = (features - mean) / torch.where(std > 1e-6, std, 1.0)

    def of_recordings(rows: Rows) -> tuple[Rows, Tensor]:
        found = clips.recordings(rows)
        return found.rows, found.mean(features[torch.from_numpy(rows).to(features.device)])

    def split_of(rows: Rows, given: Tensor) -> Split:
        return Split(given, torch.from_numpy(clips.targets[rows]).to(features.device))

    valid_rows, valid_features = of_recordings(part.valid)
    test_rows, test_features = of_recordings(part.test)
    if method == "knn":
        known = split_of(*of_recordings(train))

        def by_neighbours(queries: Tensor) -> NDArray[np.float32]:
            shares = neighbour_shares(known.features, known.labels, queries, settings.neighbours, classes)
            return shares.cpu().numpy()

        return by_neighbours(test_features), metric_of(clips, valid_rows, by_neighbours(valid_features)), None

    def scored(queries: Tensor, head: tuple[Tensor, Tensor]) -> NDArray[np.float32]:
        return (queries @ head[0] + head[1]).cpu().numpy()

    rates = tuple(sorted({settings.lr, *settings.lr_grid}))
    by_test = settings.select == "best_test"

    def of_test(head: Tensor) -> float:
        return metric_of(clips, test_rows, scored(test_features, (head[:-1], head[-1])))

    split = split_of(train, features[torch.from_numpy(train).to(features.device)])
    heads = list(zip(*train_heads(split, classes, rates, config, of_test if by_test else None), strict=True))
    valid = [metric_of(clips, valid_rows, scored(valid_features, head)) for head in heads]
    judged = [of_test(torch.cat([head[0], head[1][None]])) for head in heads] if by_test else valid
    best = max(range(len(rates)), key=lambda number: judged[number])
    return scored(test_features, heads[best]), valid[best], rates[best]
