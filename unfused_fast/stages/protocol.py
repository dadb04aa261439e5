"""The labelled clips that an evaluation uses for training, for selection and as test.   N clips, R recordings, C
classes.

One round over the splits of a set, or with folds one round per fold, each of which is the test once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.config import BASELINES, Config
from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.split_names import FIRST_SPLITS
from unfused_fast.stages.labels import VALID, LabelledClips, Rows, held_out_rows, labelled_clips
from unfused_fast.stages.metrics import metric_of
from unfused_fast.training import encoder_place, read_description, train_clips


class Round(NamedTuple):
    """Rows to train on, to choose the learning rate by, and to test on."""

    train: Rows
    valid: Rows
    test: Rows


def rounds_of(clips: LabelledClips, by_folds: bool, valid_fraction: float, seed: int) -> list[Round]:
    """The rounds; a fold's validation is the fold after it, and without a validation split train groups are held out,
    with a message.

    Source of the folds: the publisher, never reshuffled. Raises UserError when a class of the test is not in train, or
    train has one class only.
    """
    if by_folds:
        of = clips.fold_of
        folds = sorted(set(of.tolist()))
        if len(folds) < 2:
            raise UserError(
                f"{clips.directory}: all clips are in fold {folds[0]}, but cross-validation needs at least two; leave "
                "out --folds"
            )
        after = dict(zip(folds, folds[1:] + folds[:1], strict=True)) if len(folds) > 2 else {}
        use_of = {
            f"fold {fold}": np.select([of == fold, of == after.get(fold, -2)], ["test", "valid"], "train")
            for fold in folds
        }
    else:
        use_of = {"test": np.array(clips.split_of)}
    return [_round(clips, name, use, valid_fraction, seed) for name, use in use_of.items()]


def split_round(config: Config, shards: ShardSet, holdout: float | None) -> tuple[LabelledClips, Round]:
    """The labelled clips of train, valid and test, and the round over them by `config.eval`: targets permuted with
    `shuffle_labels`, few clips of train with `label_fraction`.

    Raises UserError for a set that stage 3 cannot use, where `select` = best_test has no test split, and as rounds_of
    does.

    Args:
        holdout: share of the train recordings held out as test, for a set without a test split.
    """
    train_clips(shards)
    clips, seed = labelled_clips(shards, by_folds=False, tested=False, holdout=holdout), config.train.seed
    if config.eval.select == "best_test" and "test" not in clips.split_of:
        raise UserError(f"{shards.directory}: eval.select = best_test, but the set has no test split; use valid")
    if config.eval.shuffle_labels:
        clips = replace(clips, targets=permuted(clips, False, seed))
    (part,) = rounds_of(clips, False, config.eval.valid_fraction, seed)
    return clips, part._replace(train=few_labels(clips, part.train, config.eval.label_fraction, seed))


def holdout_input(holdout: float | None) -> dict[str, str]:
    """The entry for --holdout that a run records, so that it resumes only with the same value."""
    return {} if holdout is None else {"holdout": f"{holdout:g}"}


def report_test_in_training(encoders: Sequence[str], shards: ShardSet, clips: LabelledClips) -> None:
    """Reports which runs were trained on the clips of a held-out test, and which on its labels too."""
    if clips.held_out is None:
        return
    for run in encoders:
        recorded = None if run in BASELINES else read_description(encoder_place(run))
        if recorded is None or recorded["shards"] != shards.manifest.digest:
            continue
        if recorded["stage"] != "finetune":
            console.once(f"{run}: trained on this set, the held-out test clips included, without their labels")
        elif recorded["inputs"].get("holdout") != f"{clips.held_out.fraction:g}":
            console.once(
                f"{run}: fine-tuned on this set without --holdout {clips.held_out.fraction:g}, so it was trained "
                "on labels of the held-out test, and its scores are optimistic",
                style="yellow",
            )


def result_of(
    config: Config,
    shards: ShardSet,
    encoder: str,
    clips: LabelledClips,
    part: Round,
    scores: Mapping[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """The part of the result common to train linear and train finetune, from scores (R, C) of the recordings of valid
    and, where there is one, test.

    Macro-F1 is over the classes that occur in the labels. Ours: classes that occur only in predictions are left out, so
    that it is over the same classes for every encoder. Rows of the confusion matrix are classes, columns predictions.
    """
    recordings = {name: clips.recordings(rows).rows for name, rows in part._asdict().items()}
    metric = {name: round(metric_of(clips, recordings[name], of), 6) for name, of in scores.items()}
    alike: dict[str, Any] = {
        "task": shards.name,
        "encoder": encoder,
        "metric": "mAP" if clips.multi_label else "accuracy",
        "valid": metric["valid"],
        "test": metric.get("test"),
        "select": config.eval.select,
        "classes": len(clips.label_names),
        "label_names": list(clips.label_names),
        "clips": {name: len(rows) for name, rows in part._asdict().items() if len(rows)},
        "recordings": {name: len(rows) for name, rows in recordings.items() if len(rows)},
        "held_out": None if clips.held_out is None else clips.held_out._asdict(),
        "label_fraction": config.eval.label_fraction,
    }
    if not clips.multi_label:
        from sklearn.metrics import confusion_matrix, f1_score

        pairs = {name: (clips.targets[recordings[name]], of.argmax(axis=1)) for name, of in scores.items()}
        f1 = {
            name: round(float(f1_score(*pair, labels=np.unique(pair[0]), average="macro", zero_division=0)), 6)
            for name, pair in pairs.items()
        }
        alike["macro_f1"] = {name: f1.get(name) for name in ("valid", "test")}
        alike["confusion"] = confusion_matrix(
            *pairs["test" if "test" in pairs else "valid"], labels=range(len(clips.label_names))
        ).tolist()
    return alike


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


def lacking(clips: LabelledClips, split: str, unknown: Sequence[str]) -> UserError:
    """The error for labels of a split or fold that train lacks."""
    return UserError(
        f"{clips.directory}: {split} has labels that train lacks: {', '.join(unknown[:5])}; add such clips to train or "
        "drop them"
    )


def _round(clips: LabelledClips, name: str, use: NDArray[np.str_], valid_fraction: float, seed: int) -> Round:
    rows, held, test = (np.flatnonzero(use == part) for part in ("train", "valid", "test"))
    if not len(held):
        out, _ = held_out_rows(clips, rows, valid_fraction, seed, VALID)
        held = rows[out]
        where = "" if name == "test" else f"{name}: "
        count, total = (len(clips.recordings(found).rows) for found in (held, rows))
        console.once(
            f"{where}no validation split; held out for it: {count} of {counted(total, 'train recording')}",
            about=("validation", name, len(rows), valid_fraction),
        )
        rows = rows[~out]
    unknown = clips.unknown(test, rows)
    if clips.multi_label and unknown:
        console.once(
            f"{name}: {counted(len(unknown), 'label')} without a clip in train, such as {unknown[0]}: no head can "
            "learn that, and mAP counts it",
            style="yellow",
        )
    elif unknown:
        raise lacking(clips, name, unknown)
    elif len(clips.classes(rows)) < 2 and not clips.multi_label:
        raise UserError(f"{clips.directory}: train has clips of one class only; evaluation needs at least two")
    return Round(rows, held, test)
