"""Frozen encoders on a labelled set: linear heads and nearest neighbours, with all labels or few, by splits or folds.

N clips, T test recordings, D features, C classes. Heads are those of train linear; test is read once a head. Features
of a recording are the mean of its pieces': the scores of a linear head are then the mean of its scores for the pieces.
Several ranks share the features; rank 0 measures on them.
Source of the linear head: paper section 3, part 3. Ours: nearest neighbours, few labels, intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from unfused_fast.config import BASELINES, Config, with_values
from unfused_fast.console import console
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError
from unfused_fast.models import Cost, encoder_cost
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages import (
    LabelledClips,
    LinearHeads,
    Round,
    Rows,
    baseline_encoder,
    eval_features,
    few_labels,
    labelled_clips,
    load_encoder,
    metric_of,
    permuted,
    report_test_in_training,
    round_features,
    rounds_of,
)

Method = Literal["linear", "knn"]
QUERIES = 1024
"""Queries whose similarities to all train clips are in memory at once."""
NO_DISTANCE = 1e-12
"""Smallest distance of a neighbour; at this distance its vote outweighs all others."""


@dataclass(frozen=True)
class Plan:
    """The measurements of each encoder."""

    methods: tuple[Method, ...] = ("linear",)
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the train labels, each greater than 0 and at most 1."""
    by_folds: bool = False
    seeds: int = 1
    """Repetitions: seeds of the order of batches, of few labels, of held-out validation, and of the random encoder."""
    holdout: float | None = None
    """Share of the train recordings held out as test, for a set without a test split."""
    seed_of_run: bool = False
    """Whether each run of an encoder has its own seed, in order, instead of `seeds`."""
    read_again: bool = False
    """Whether other encoders will be measured on the set: with `data.store` = auto its log-mels are then kept."""

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
    """(T,) rows of LabelledClips, one per test recording, round after round."""
    round_of: Rows
    """(T,) number of the round that tested the row."""
    scores: NDArray[np.float32]
    """(T, C) larger for more likely classes; the prediction of a single label is the argmax."""
    valid: float
    """Metric on validation, mean over rounds; for nearest neighbours, which select nothing, only reported."""
    rates: tuple[float | None, ...]
    """Learning rate that validation selected in each round; None for nearest neighbours."""
    train_clips: int
    """Train clips of the first round, and"""
    train_recordings: int
    """the recordings that they are pieces of: labels used."""
    test_clips: int
    """Clips that the T test recordings consist of."""
    features: int
    """D."""
    cost: Cost | None
    """Of the encoder, by `eval.encoder`; None for log-mel, which has none."""


def refuse_label_fraction(config: Config) -> None:
    """Raises UserError for a config with few labels, which only `train linear` reads; here it is Plan.fractions."""
    if (fraction := config.eval.label_fraction) != 1:
        raise UserError(
            f"eval.label_fraction = {fraction:g}: only train linear reads it; use --label-fraction {fraction:g}"
        )


def measurable(config: Config, shards: ShardSet, plan: Plan, seeds: Iterable[int]) -> LabelledClips:
    """The clips that `plan` measures with `seeds`. Raises UserError for a set with which it cannot."""
    refuse_label_fraction(config)
    clips = labelled_clips(shards, plan.by_folds, holdout=plan.holdout)
    for seed in seeds:
        rounds_of(clips, plan.by_folds, config.eval.valid_fraction, seed)
    return clips


def measure(
    config: Config,
    shards: ShardSet,
    encoders: Mapping[str, Sequence[str]],
    plan: Plan,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> tuple[LabelledClips, list[Measured]]:
    """Measures every encoder: name -> runs of it (directories), or the baselines `random` and `logmel`. Of several
    ranks rank 0 alone gets what was measured.

    `random` has the architecture of the first run, or of the config where there is none; where runs differ in size, its
    name says as which. Raises UserError for a set or run that cannot be evaluated.
    """
    refuse_label_fraction(config)
    clips = ranks.every(lambda: labelled_clips(shards, plan.by_folds, holdout=plan.holdout))
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, plan.by_folds, config.train.seed))
    given = [(name, run, number) for name, runs in encoders.items() for number, run in enumerate(runs)]
    loaded = ranks.every(lambda: {run: load_encoder(run, device) for _, run, _ in given if run not in BASELINES})
    if config.eval.features == "projector":
        for frozen in loaded.values():
            frozen.head()  # raises before anything is measured
    report_test_in_training(list(loaded), shards, clips)
    architecture = next(iter(loaded.values())).config if loaded else config
    found, splits = list[Measured](), dict[str, Tensor]()
    costs = {run: encoder_cost(frozen.config, config.eval.encoder) for run, frozen in loaded.items()}
    first = next((name for name, run, _ in given if run in loaded), "")
    alike = len(set(costs.values())) < 2
    for title, run, number in given:
        name = title if alike or not title == run == "random" else f"random (as {first})"
        cost = None if run == "logmel" else costs.get(run) or encoder_cost(architecture, config.eval.encoder)
        seeds = [number] if plan.seed_of_run else range(plan.seeds)
        for seed in (config.train.seed + number for number in seeds):
            rounds = ranks.every(partial(rounds_of, clips, plan.by_folds, config.eval.valid_fraction, seed))
            seeded = with_values(config, {"train.seed": seed})
            if seed == config.train.seed + seeds[0] or run == "random":  # a different one for each seed
                random = with_values(architecture, {"train.seed": seed})
                frozen = loaded[run] if run in loaded else baseline_encoder(run, random, device)
                read = seeded if plan.seed_of_run else config  # all seeds of a run use the same crops
                splits = eval_features(
                    frozen, read, shards, clips.splits, device, read_again=plan.read_again, ranks=ranks
                )
            ranks.first(partial(_measure, found, seeded, shards.name, clips, rounds, splits, plan, name, run, cost))
    return clips, found


def _measure(
    found: list[Measured],
    config: Config,
    task: str,
    clips: LabelledClips,
    rounds: Sequence[Round],
    splits: Mapping[str, Tensor],
    plan: Plan,
    name: str,
    run: str,
    cost: Cost | None,
) -> None:
    """Adds every share of labels and method with one seed, on the features (N, D) of each split."""
    features, seed = torch.cat([splits[split] for split in clips.splits]), config.train.seed
    features = features[torch.from_numpy(clips.kept).to(features.device)]
    of = name if name == run or run in BASELINES else f"{name} ({run})"
    console.print(f"evaluate: {of} on {task}, seed {seed}, {features.shape[1]} features")
    for fraction in plan.fractions:
        parts = [part._replace(train=few_labels(clips, part.train, fraction, seed)) for part in rounds]
        tests = [clips.recordings(part.test).rows for part in parts]
        for method in plan.methods:
            outcomes = (_test(config, clips, part, features, method) for part in parts)
            scores, valid, rates = zip(*outcomes, strict=True)
            found.append(
                Measured(
                    encoder=name,
                    method=method,
                    fraction=fraction,
                    run=run,
                    seed=seed,
                    rows=np.concatenate(tests),
                    round_of=np.repeat(np.arange(len(tests)), [len(rows) for rows in tests]),
                    scores=np.concatenate(scores),
                    valid=float(np.mean(valid)),
                    rates=rates,
                    train_clips=len(parts[0].train),
                    train_recordings=len(clips.recordings(parts[0].train).rows),
                    test_clips=sum(len(part.test) for part in parts),
                    features=features.shape[1],
                    cost=cost,
                )
            )


def _test(
    config: Config, clips: LabelledClips, part: Round, features: Tensor, method: Method
) -> tuple[NDArray[np.float32], float, float | None]:
    """Scores (T, C) of a round's test recordings, the metric on its validation's, and the chosen learning rate.

    Heads learn from clips. The neighbours are recordings, like the queries: otherwise all k could be pieces of one long
    recording.
    """
    splits = round_features(config, clips, part, features)
    if method == "linear":
        heads = LinearHeads(config, clips, part, splits)
        return heads.scores("test", heads.best), heads.metric("valid", heads.best), heads.rates[heads.best]
    known = clips.recordings(part.train)
    train = known.mean(splits["train"]), torch.from_numpy(clips.targets[known.rows]).to(features.device)
    valid, test = (
        neighbour_shares(*train, splits[name], config.eval.neighbours, len(clips.label_names)).cpu().numpy()
        for name in ("valid", "test")
    )
    return test, metric_of(clips, clips.recordings(part.valid).rows, valid), None


def neighbour_shares(train: Tensor, targets: Tensor, queries: Tensor, k: int, classes: int) -> Tensor:
    """k nearest neighbours by cosine similarity, N train recordings (N, D), their (N,) int64 labels or (N, C) bool, Q
    queries (Q, D) -> (Q, C): share of the votes of a query's k neighbours for each class. k is at most N.

    A vote weighs 1 / (1 - cosine), as in scikit-learn's KNeighborsClassifier(metric="cosine", weights="distance").
    Ours: with one label per class, equal votes would always tie.
    """
    if targets.ndim == 1:
        targets = one_hot(targets, classes)
    unit, votes, k = normalize(train.double(), dim=1), targets.double(), min(k, len(train))
    shares = []
    for block in torch.split(normalize(queries.double(), dim=1), QUERIES):
        similarity, nearest = (block @ unit.T).topk(k, dim=1)
        weights = 1 / (1 - similarity).clamp(min=NO_DISTANCE)
        shares.append(torch.einsum("qk,qkc->qc", weights / weights.sum(dim=1, keepdim=True), votes[nearest]))
    return torch.cat(shares).float()
