"""Which labelled clips an evaluation trains on, chooses by and tests on.   N clips, C classes.

One round over the splits of a set, or with folds one round a fold, each of which is the test once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.config import Config
from unfused_fast.errors import UserError
from unfused_fast.shards.table import NO_LABEL, ShardSet

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledClips:
    """The clips that have labels and are in a split or fold that is read; row i is one clip throughout."""

    splits: tuple[str, ...]
    """Splits that are read, in order of the rows."""
    kept: Rows
    """(N,) position of each row among all clips of `splits`."""
    clip_ids: Rows
    keys: list[str]
    split_of: list[str]
    fold_of: Rows
    """(N,) published fold, -1 where there is none."""
    groups: list[str]
    targets: NDArray[Any]
    """(N,) int64 labels, or (N, C) bool of a multi-label set."""
    label_names: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels: then the metric is mAP, else accuracy."""
        return self.targets.ndim == 2


@dataclass(frozen=True)
class Round:
    """Rows to train on, to choose the learning rate by, and to test on."""

    name: str
    train: Rows
    valid: Rows
    test: Rows


def labelled_clips(shards: ShardSet, by_folds: bool, tested: bool = True) -> LabelledClips:
    """The clips of train, valid and test; by folds, those of every split that have a fold.

    Raises UserError for a set without labels, and for one without folds or, where it is to be `tested`, a test split.
    """
    there = tuple(shards.manifest.splits)
    splits = there if by_folds else tuple(name for name in ("train", "valid", "test") if name in there)
    folds_there = shards.clips.column("fold").null_count < shards.clips.num_rows
    if by_folds and not folds_there:
        raise UserError(f"{shards.directory}: its clips have no fold, so there is no cross-validation; leave --folds")
    if not by_folds and tested and not {"train", "test"} <= set(splits):
        mend = "cross-validate with --folds" if folds_there else "pack one with a split train and a split test"
        raise UserError(
            f"{shards.directory}: it has the splits {', '.join(there)}, but train and test are wanted; {mend}"
        )
    columns: dict[str, list[Any]] = {
        name: [] for name in ("clip_id", "key", "split", "fold", "group", "label", "labels")
    }
    for split in splits:
        table = shards.clips_in(split)
        for name, values in columns.items():
            values += table.column(name).to_pylist()
    folds = np.array([-1 if fold is None else fold for fold in columns["fold"]], dtype=np.int64)
    kept = np.flatnonzero(folds >= 0) if by_folds else np.arange(len(folds))
    chosen = {name: [values[row] for row in kept] for name, values in columns.items()}
    return LabelledClips(
        splits,
        kept,
        np.array(chosen["clip_id"], dtype=np.int64),
        chosen["key"],
        chosen["split"],
        folds[kept],
        chosen["group"],
        _targets(shards, chosen["split"], chosen["label"], chosen["labels"]),
        shards.manifest.label_names,
    )


def rounds_of(clips: LabelledClips, by_folds: bool, valid_fraction: float, seed: int) -> list[Round]:
    """The rounds; a fold's validation is the fold after it, and without a validation split train groups are held out.

    Source of the folds: the publisher, never reshuffled. Raises UserError when a class of the test is not in train.
    """
    rounds = []
    if by_folds:
        names = sorted(set(clips.fold_of.tolist()))
        if len(names) < 2:
            raise UserError(f"all clips are in fold {names[0]}, but cross-validation wants at least two; leave --folds")
        for number, fold in enumerate(names):
            after = names[(number + 1) % len(names)] if len(names) > 2 else None
            test, valid = clips.fold_of == fold, np.zeros(len(clips.fold_of), dtype=bool)
            valid = clips.fold_of == after if after is not None else valid
            rounds.append(_round(clips, f"fold {fold}", ~test & ~valid, valid, test, valid_fraction, seed))
    else:
        split = np.array(clips.split_of)
        masks = (split == "train", split == "valid", split == "test")
        rounds.append(_round(clips, "test", *masks, valid_fraction, seed))
    return rounds


def split_round(config: Config, shards: ShardSet, clips: LabelledClips) -> tuple[LabelledClips, Round]:
    """The round over the splits by `config.eval`: targets permuted with `shuffle_labels`, few clips of train with
    `label_fraction`.

    Raises UserError where `select` = best_test has no test to go by, and as rounds_of does.
    """
    seed = config.train.seed
    if config.eval.select == "best_test" and "test" not in clips.splits:
        raise UserError(f"{shards.directory}: eval.select = best_test, but the set has no test split; use valid")
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, False, seed))
    (part,) = rounds_of(clips, False, config.eval.valid_fraction, seed)
    return clips, replace(part, train=few_labels(clips, part.train, config.eval.label_fraction, seed))


def permuted(clips: LabelledClips, by_folds: bool, seed: int) -> NDArray[Any]:
    """Targets permuted within each split, or within each fold, so that each keeps its own."""
    generator, targets = np.random.Generator(np.random.PCG64([seed, 12])), clips.targets.copy()
    part_of = clips.fold_of if by_folds else np.array([clips.splits.index(name) for name in clips.split_of])
    for part in np.unique(part_of):
        targets[part_of == part] = generator.permutation(targets[part_of == part])
    return targets


def few_labels(clips: LabelledClips, train: Rows, fraction: float, seed: int) -> Rows:
    """A share of the train rows, of each class at least one clip; of a multi-label set a share of all clips."""
    strata = np.zeros(len(train), dtype=np.int64) if clips.multi_label else clips.targets[train]
    chosen: Rows = train[label_subset(strata, fraction, seed)]
    return chosen


def label_subset(labels: Rows, fraction: float, seed: int) -> Rows:
    """Rows of a share of the clips of each class, at least one each, drawn by seed; sorted. Ours: low-label
    evaluation.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 10]))
    chosen = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, math.ceil(fraction * len(rows) - 1e-9))])
    return np.sort(np.concatenate(chosen))


def hold_out_groups(groups: list[str], labels: Rows, fraction: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for clips held out: whole groups in a seeded order until the fraction is reached.

    A group that holds the last clips of a class stays. Raises UserError when no group can be held out.
    """
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    rows_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    held, left, taken = np.zeros(len(codes), dtype=bool), np.bincount(labels), 0
    for group in np.random.Generator(np.random.PCG64([seed, 11])).permutation(len(names)):
        if taken >= fraction * len(held):
            break
        found, counts = np.unique(labels[rows_of[group]], return_counts=True)
        if (left[found] > counts).all():
            left[found] -= counts
            held[rows_of[group]] = True
            taken += len(rows_of[group])
    if not held.any():
        raise UserError(
            "the set has no valid split, and no group of its train clips can be held out without losing a class; "
            "give splits or smaller groups in the CSV"
        )
    return held


def units_to_hold_out(groups: list[str], labels: Rows) -> list[str]:
    """What hold_out_groups keeps whole: the groups, or each clip by itself where every class has one group only.

    Ours: the classes of LibriSpeech are chapters, its groups too; no chapter can be spared, and test shares them all.
    """
    classes = len(np.unique(labels))
    if classes > 1 and len(set(zip(groups, labels.tolist(), strict=True))) == classes:
        return [str(number) for number in range(len(groups))]
    return groups


def _round(
    clips: LabelledClips,
    name: str,
    train: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    test: NDArray[np.bool_],
    valid_fraction: float,
    seed: int,
) -> Round:
    rows = np.flatnonzero(train)
    if valid.any():
        held = np.flatnonzero(valid)
    else:
        strata = np.zeros(len(rows), dtype=np.int64) if clips.multi_label else clips.targets[rows]
        units = units_to_hold_out([clips.groups[row] for row in rows], strata)
        out = hold_out_groups(units, strata, valid_fraction, seed)
        held, rows = rows[out], rows[~out]
    found = Round(name, rows, held, np.flatnonzero(test))
    if not clips.multi_label:
        known = set(clips.targets[found.train].tolist())
        unknown = sorted(clips.label_names[label] for label in set(clips.targets[found.test].tolist()) - known)
        if unknown or len(known) < 2:
            what = f"classes that train lacks: {', '.join(unknown[:5])}" if unknown else "a train of one class only"
            raise UserError(f"{name} has {what}; add such clips to train or drop them")
    return found


def _targets(shards: ShardSet, split_of: list[str], label: list[int], labels: list[list[int] | None]) -> NDArray[Any]:
    single = np.array(label, dtype=np.int64)
    several = np.array([len(found or ()) for found in labels])
    multi_label = (single == NO_LABEL).all() and several.any()
    without = several == 0 if multi_label else single == NO_LABEL
    if without.any():
        split = split_of[int(without.argmax())]
        own = np.array(split_of) == split
        raise UserError(
            f"{shards.directory}: {int(without[own].sum())} of {int(own.sum())} clips of split {split} have no label; "
            "evaluation needs one each: pack with a `label` column, with --labels-from-folders, or with --dataset"
        )
    if not multi_label:
        return single
    truth = np.zeros((len(labels), len(shards.manifest.label_names)), dtype=bool)
    for row, found in enumerate(labels):
        truth[row, found] = True
    return truth
