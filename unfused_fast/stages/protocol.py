"""The labelled clips that an evaluation uses for training, for selection and as test.   N clips, C classes.

One round over the splits of a set, or with folds one round per fold, each of which is the test once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.config import Config
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.split_names import FIRST_SPLITS
from unfused_fast.stages.labels import VALID, LabelledClips, Rows, held_out_rows


class Round(NamedTuple):
    """Rows to train on, to choose the learning rate by, and to test on."""

    name: str
    train: Rows
    valid: Rows
    test: Rows


def rounds_of(clips: LabelledClips, by_folds: bool, valid_fraction: float, seed: int) -> list[Round]:
    """The rounds; a fold's validation is the fold after it, and without a validation split train groups are held out,
    with a message.

    Source of the folds: the publisher, never reshuffled. Raises UserError when a class of the test is not in train.
    """
    split = np.array(clips.split_of)
    if not by_folds:
        train, valid, test = (split == name for name in ("train", "valid", "test"))
        return [_round(clips, "test", train, valid, test, valid_fraction, seed)]
    names, rounds = sorted(set(clips.fold_of.tolist())), []
    if len(names) < 2:
        raise UserError(f"all clips are in fold {names[0]}, but cross-validation needs at least two; leave out --folds")
    for fold, after in zip(names, names[1:] + names[:1], strict=True):
        test, valid = clips.fold_of == fold, (clips.fold_of == after) & (len(names) > 2)
        rounds.append(_round(clips, f"fold {fold}", ~test & ~valid, valid, test, valid_fraction, seed))
    return rounds


def split_round(config: Config, shards: ShardSet, clips: LabelledClips) -> tuple[LabelledClips, Round]:
    """The round over the splits by `config.eval`: targets permuted with `shuffle_labels`, few clips of train with
    `label_fraction`.

    Raises UserError where `select` = best_test has no test split, and as rounds_of does.
    """
    seed = config.train.seed
    if config.eval.select == "best_test" and "test" not in clips.split_of:
        raise UserError(f"{shards.directory}: eval.select = best_test, but the set has no test split; use valid")
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, False, seed))
    (part,) = rounds_of(clips, False, config.eval.valid_fraction, seed)
    return clips, part._replace(train=few_labels(clips, part.train, config.eval.label_fraction, seed))


def counts(clips: LabelledClips, part: Round) -> dict[str, Any]:
    """Data entries of a result: clips and recordings of train, valid and test, and the held-out test."""
    rows = {name: found for name, found in zip(Round._fields[1:], part[1:], strict=True) if len(found)}
    return {
        "clips": {name: len(found) for name, found in rows.items()},
        "recordings": {name: len(clips.recordings(found).rows) for name, found in rows.items()},
        "held_out": None if clips.held_out is None else clips.held_out._asdict(),
    }


def permuted(clips: LabelledClips, by_folds: bool, seed: int) -> NDArray[Any]:
    """Targets permuted among the recordings of each split, or of each fold, so that each keeps its own targets."""
    generator = np.random.Generator(np.random.PCG64([seed, 12]))
    first, of_row = clips.recordings(np.arange(len(clips.clip_ids)))
    targets = clips.targets[first]
    parts = clips.fold_of if by_folds else np.array([FIRST_SPLITS.index(name) for name in clips.split_of])
    part_of = parts[first]
    for part in np.unique(part_of):
        targets[part_of == part] = generator.permutation(targets[part_of == part])
    return targets[of_row]


def few_labels(clips: LabelledClips, train: Rows, fraction: float, seed: int) -> Rows:
    """The train rows of a share of the recordings of each class, at least one each, drawn by seed; of a multi-label set
    of all recordings. Ours: low-label evaluation.
    """
    first, of_row = clips.recordings(train)
    strata = np.zeros(len(first), dtype=np.int64) if clips.multi_label else clips.targets[first]
    generator, chosen = np.random.Generator(np.random.PCG64([seed, 10])), []
    for label in np.unique(strata):
        recordings = generator.permutation(np.flatnonzero(strata == label))
        chosen.append(recordings[: max(1, math.ceil(fraction * len(recordings) - 1e-9))])
    found: Rows = train[np.isin(of_row, np.concatenate(chosen))]
    return found


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
        out, _ = held_out_rows(clips, rows, valid_fraction, seed, VALID)
        held = rows[out]
        where = "" if name == "test" else f"{name}: "
        count, total = (len(clips.recordings(found).rows) for found in (held, rows))
        console.once(
            f"{where}no validation split; {count} of {total} train recordings are held out for it",
            about=("validation", name, len(rows), valid_fraction),
        )
        rows = rows[~out]
    found = Round(name, rows, held, np.flatnonzero(test))
    known = clips.classes(found.train)
    unknown = sorted(clips.label_names[label] for label in clips.classes(found.test) - known)
    if clips.multi_label and unknown:
        console.once(
            f"{name} has {len(unknown)} classes that train lacks, such as {unknown[0]}: no head can learn them, and "
            "they count in mAP",
            style="yellow",
        )
    elif unknown or (len(known) < 2 and not clips.multi_label):
        what = f"classes that train lacks: {', '.join(unknown[:5])}" if unknown else "a train of one class only"
        raise UserError(f"{name} has {what}; add such clips to train or drop them")
    return found
