"""Frozen encoders on a labelled set: linear heads and nearest neighbours, with few labels and many, by splits or folds.

N clips, T test clips, D features, C classes. Heads are those of linear.py; test is read once a head.
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

from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.features import FrozenEncoder, baseline_encoder, eval_features, load_encoder
from unfused_fast.linear import Split, train_heads
from unfused_fast.metrics import AveragePrecision, accuracy
from unfused_fast.names import BASELINES
from unfused_fast.neighbours import neighbour_shares
from unfused_fast.protocol import LabelledClips, Round, Rows, few_labels, labelled_clips, permuted, rounds_of
from unfused_fast.settings import with_values
from unfused_fast.shards.table import ShardSet
from unfused_fast.training import console

Method = Literal["linear", "knn"]


@dataclass(frozen=True)
class Plan:
    """What is measured of each encoder."""

    methods: tuple[Method, ...] = ("linear",)
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the train labels, each greater than 0 and at most 1."""
    by_folds: bool = False
    seeds: int = 1
    """Repetitions: seeds of the order of batches, of few labels, of held-out groups, and of the random encoder."""

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
    """One encoder, method, share of labels and repetition: scores of every test clip, once."""

    encoder: str
    method: Method
    fraction: float
    run: str
    seed: int
    rows: Rows
    """(T,) rows of LabelledClips that were tested on, round after round."""
    round_of: Rows
    """(T,) number of the round that tested the row."""
    scores: NDArray[np.float32]
    """(T, C) larger where a class is likelier; the prediction of a single label is the argmax."""
    valid: float
    """Metric on validation, mean over rounds; of nearest neighbours, which choose nothing, for information."""
    rates: tuple[float | None, ...]
    """Learning rate that validation chose in each round; None for nearest neighbours."""
    train_clips: int
    """Labels used, in the first round."""
    features: int
    """D."""


def metric_of(clips: LabelledClips, rows: Rows, scores: NDArray[np.float32]) -> float:
    """Accuracy, or of a multi-label set mAP, of scores (T, C) for rows (T,)."""
    if clips.multi_label:
        return AveragePrecision(clips.targets[rows], scores).mean()
    return accuracy(clips.targets[rows], scores.argmax(axis=1))


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
    clips = labelled_clips(shards, plan.by_folds)
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, plan.by_folds, config.train.seed))
    seeds = [config.train.seed + number for number in range(plan.seeds)]
    rounds = {seed: rounds_of(clips, plan.by_folds, config.eval.valid_fraction, seed) for seed in seeds}
    loaded = {
        run: load_encoder(Path(run), device) for runs in encoders.values() for run in runs if run not in BASELINES
    }
    architecture = next(iter(loaded.values())).config if loaded else config
    found = []
    for name, runs in encoders.items():
        for run in runs:
            for seed, frozen, features in _features(config, architecture, shards, clips, run, loaded, seeds, device):
                console.print(f"evaluate: {name} ({frozen.name}), seed {seed}, {features.shape[1]} features")
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
                np.concatenate([part.test for part in rounds]),
                np.repeat(np.arange(len(rounds)), [len(part.test) for part in rounds]),
                np.concatenate([scores for scores, _, _ in tested]),
                float(np.mean([valid for _, valid, _ in tested])),
                tuple(rate for _, _, rate in tested),
                len(chosen[0]),
                features.shape[1],
            )


def _test(
    config: Config, clips: LabelledClips, part: Round, train: Rows, features: Tensor, method: Method
) -> tuple[NDArray[np.float32], float, float | None]:
    """Scores (T, C) of a round's test clips, the metric on its validation clips, and the chosen learning rate."""
    settings, classes = config.eval, len(clips.label_names)
    on_device = torch.from_numpy(train).to(features.device)
    if settings.standardize:
        mean, std = features[on_device].mean(dim=0), features[on_device].std(dim=0, correction=0)
        features = (features - mean) / torch.where(std > 1e-6, std, 1.0)
    split = Split(features[on_device], torch.from_numpy(clips.targets[train]).to(features.device))

    def scored(rows: Rows, head: tuple[Tensor, Tensor] | None) -> NDArray[np.float32]:
        queries = features[torch.from_numpy(rows).to(features.device)]
        if head is None:
            shares = neighbour_shares(split.features, split.labels, queries, settings.neighbours, classes)
            return shares.cpu().numpy()
        return (queries @ head[0] + head[1]).cpu().numpy()

    if method == "knn":
        return scored(part.test, None), metric_of(clips, part.valid, scored(part.valid, None)), None
    rates = tuple(sorted({settings.lr, *settings.lr_grid}))
    by_test = settings.select == "best_test"

    def of_test(head: Tensor) -> float:
        return metric_of(clips, part.test, scored(part.test, (head[:-1], head[-1])))

    heads = list(zip(*train_heads(split, classes, rates, config, of_test if by_test else None), strict=True))
    valid = [metric_of(clips, part.valid, scored(part.valid, head)) for head in heads]
    judged = [of_test(torch.cat([head[0], head[1][None]])) for head in heads] if by_test else valid
    best = max(range(len(rates)), key=lambda number: judged[number])
    return scored(part.test, heads[best]), valid[best], rates[best]
