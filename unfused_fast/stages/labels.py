"""The labelled clips of a set, and the recordings that they are pieces of.   N clips, R recordings, C classes.

Packing cuts a long file into clips. Heads learn from clips; validation and test are of recordings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.console import console, counted
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import NO_LABEL, ShardSet
from unfused_fast.shards.sources.split_names import FIRST_SPLITS
from unfused_fast.training import report_unused_splits, train_clips

Rows = NDArray[np.int64]

VALID, TEST = 11, 13
"""Streams of random numbers: held-out validation and held-out test are drawn independently."""
HOLD_OUT_SEED = 0
"""Seed of the draw of a held-out test. Ours: fixed, so that every command, encoder, `--seed` and repetition has the
same test, and no encoder was fine-tuned on its clips."""


class Recordings(NamedTuple):
    """The recordings of which some rows are pieces."""

    rows: Rows
    """(R,) first row of each, which has its labels, group and fold."""
    of_row: Rows
    """(N,) number of each row's recording, in `rows`."""

    def mean(self, values: Tensor) -> Tensor:
        """(N, D) of the pieces -> (R, D) mean over the pieces of each recording, which have equal lengths."""
        order = np.argsort(self.of_row, kind="stable")
        counts = torch.from_numpy(np.bincount(self.of_row)).to(values.device)
        return torch.segment_reduce(values[torch.from_numpy(order).to(values.device)], "mean", lengths=counts)


class HeldOut(NamedTuple):
    """A test that was held out of the train split."""

    fraction: float
    """As requested."""
    recordings: int
    groups: int
    whole_groups: bool
    """Whether no group is in both parts; False: every class is one group, so recordings were held out."""


@dataclass(frozen=True)
class LabelledClips:
    """The labelled clips of the splits or folds that are read; row i is the same clip in every field."""

    directory: Path
    """Of the set."""
    splits: tuple[str, ...]
    """Splits that are read, in order of the rows."""
    kept: Rows
    """(N,) position of each row among all clips of `splits`."""
    clip_ids: Rows
    split_of: list[str]
    """The use of each row: its split, or `test` where it was held out."""
    fold_of: Rows
    """(N,) published fold, -1 where there is none."""
    groups: list[str]
    targets: NDArray[Any]
    """(N,) int64 labels, or (N, C) bool of a multi-label set."""
    label_names: tuple[str, ...]
    recording_of: Rows
    """(N,) number of the file that the row is a piece of, in order of first rows."""
    held_out: HeldOut | None = None

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels: then the metric is mAP, else accuracy."""
        return self.targets.ndim == 2

    def classes(self, rows: Rows) -> set[int]:
        """The classes that occur in the rows."""
        found = np.flatnonzero(self.targets[rows].any(axis=0)) if self.multi_label else self.targets[rows]
        return set(found.tolist())

    def unknown(self, rows: Rows, train: Rows) -> list[str]:
        """Names of the classes of `rows` that do not occur in `train`."""
        return sorted(self.label_names[label] for label in self.classes(rows) - self.classes(train))

    def recordings(self, rows: Rows) -> Recordings:
        """The recordings that `rows` are pieces of."""
        _, first, of_row = np.unique(self.recording_of[rows], return_index=True, return_inverse=True)
        return Recordings(rows[first], of_row)


def labelled_clips(
    shards: ShardSet, by_folds: bool, tested: bool = True, holdout: float | None = None
) -> LabelledClips:
    """The clips of train, valid and test; by folds, those of every split that have a fold. Reports which clips are left
    out.

    Raises UserError for a set without labels, for one without folds or, where it is to be `tested`, a test split, and
    for a `holdout` that is impossible.

    Args:
        holdout: share of the train recordings that are held out as test.
    """
    if not shards.manifest.label_names:  # first: no other split or fold would help
        _targets(shards, shards.clips)
    if not by_folds:
        report_unused_splits(shards)
    there = tuple(shards.manifest.splits)
    splits = there if by_folds else tuple(name for name in FIRST_SPLITS if name in there)
    folds_there = shards.clips["fold"].null_count < len(shards.clips)
    if by_folds and not folds_there:
        raise UserError(
            f"{shards.directory}: its clips have no fold, so there is no cross-validation; leave out --folds"
        )
    if holdout is not None:
        _refuse_holdout(shards, by_folds, holdout)
    elif not by_folds and tested and not {"train", "test"} <= set(splits):
        ways = ["hold a test out of train with --holdout 0.2"] if "train" in splits else []
        ways += ["cross-validate with --folds"] if folds_there else []
        raise UserError(
            f"{shards.directory}: it has the splits {', '.join(there)}, but train and test are needed; "
            f"{', or '.join([*ways, 'pack it with a split train and a split test'])}"
        )
    elif not tested and "test" not in there:
        console.once(f"{shards.directory}: no test split, so validation alone is scored; --holdout 0.2 makes a test")
    table = pa.concat_tables([shards.clips_in(split) for split in splits])
    kept = np.flatnonzero(table["fold"].is_valid().to_numpy()) if by_folds else np.arange(len(table))
    if len(kept) < len(table):
        console.once(
            f"{shards.directory}: without a fold, and not used: {len(table) - len(kept)} of "
            f"{counted(len(table), 'clip')}"
        )
    table = table.take(kept).combine_chunks()
    # numbers in order of first rows
    recordings = table["source"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    clips = LabelledClips(
        shards.directory,
        splits,
        kept,
        table["clip_id"].to_numpy().astype(np.int64),
        table["split"].to_pylist(),
        table["fold"].fill_null(-1).to_numpy().astype(np.int64),
        table["group"].to_pylist(),
        _targets(shards, table),
        shards.manifest.label_names,
        recordings,
    )
    if (files := len(np.unique(recordings))) < len(kept):
        console.once(
            f"{shards.directory}: {len(kept)} labelled clips are pieces of {counted(files, 'recording')}; scores are "
            "of recordings, by the mean of their pieces"
        )
    return clips if holdout is None else _with_test(clips, holdout)


def held_out_rows(
    clips: LabelledClips, train: Rows, fraction: float, seed: int, stream: int
) -> tuple[NDArray[np.bool_], bool]:
    """Which train rows are held out, all pieces of a recording together, and whether no group is in both parts."""
    first, of_row = clips.recordings(train)
    groups = [clips.groups[row] for row in first]
    try:
        held, whole = hold_out_groups(groups, clips.targets[first], fraction, seed, stream)
    except UserError as error:
        raise UserError(f"{clips.directory}: {error}") from error
    return held[of_row], whole


def hold_out_groups(
    groups: Sequence[str], targets: NDArray[Any], fraction: float, seed: int, stream: int = VALID
) -> tuple[NDArray[np.bool_], bool]:
    """(N,) True for held-out clips, about the fraction of each class, and at least one clip of each; and whether they
    are whole groups.

    Groups come in a seeded order, and each one is held out that brings the counts of the classes nearer to the target.
    A group with the last clips of a class stays in train. Ours: where every class is one group, as the chapters of
    LibriSpeech are, single clips are held out instead. Raises UserError when nothing can be held out.

    Args:
        targets: (N,) int64 labels, or (N, C) bool of a multi-label set.
    """
    single = targets.ndim == 1
    rows, classes = (np.arange(len(targets)), targets) if single else np.nonzero(targets)
    whole = not (single and 1 < len(np.unique(classes)) == len(set(zip(groups, classes.tolist(), strict=True))))
    units = groups if whole else [str(number) for number in range(len(targets))]
    names, codes = np.unique(np.asarray(units), return_inverse=True)
    order = np.argsort(codes[rows], kind="stable")
    classes_of = np.split(classes[order], np.cumsum(np.bincount(codes[rows], minlength=len(names)))[:-1])
    left = np.bincount(classes)
    wanted, taken = np.maximum(fraction * left, 1.0), np.zeros(len(left))
    held, nearest = np.zeros(len(names), dtype=bool), (math.inf, -1)
    for group in np.random.Generator(np.random.PCG64([seed, stream])).permutation(len(names)):
        found, counts = np.unique(classes_of[group], return_counts=True)
        if not len(found) or (left[found] <= counts).any():
            continue
        missing = wanted[found] - taken[found]
        further = float((np.abs(missing - counts) - np.abs(missing)).sum())
        nearest = min(nearest, (further, int(group)))
        if further < 0:
            left[found] -= counts
            taken[found] += counts
            held[group] = True
    if nearest[1] < 0:
        raise UserError(
            "no group of its train clips can be held out, for validation or test, without losing a class; give splits "
            "or smaller groups in the CSV"
        )
    held[nearest[1]] |= not held.any()
    chosen: NDArray[np.bool_] = held[codes]
    return chosen, whole


def _refuse_holdout(shards: ShardSet, by_folds: bool, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"--holdout {fraction:g}: want a share of the train split, such as 0.2")
    if by_folds:
        raise UserError("--holdout and --folds: with folds each clip is tested already; give one of them")
    if "test" in shards.manifest.splits:
        raise UserError(f"{shards.directory}: it already has a test split; leave out --holdout")
    train_clips(shards)


def _with_test(clips: LabelledClips, fraction: float) -> LabelledClips:
    """The same clips, of which some of train are the test; prints how many, and which classes have none."""
    train = np.flatnonzero(np.array(clips.split_of) == "train")
    out, whole = held_out_rows(clips, train, fraction, HOLD_OUT_SEED, TEST)
    first = clips.recordings(train[out]).rows
    held = HeldOut(fraction, len(first), len({clips.groups[row] for row in first}), whole)
    how = (
        f"of {counted(held.groups, 'whole group')}"
        if whole
        else "whose groups train has too, since each class is one group"
    )
    console.once(
        f"{clips.directory}: no test split; held out as test: {held.recordings} of "
        f"{counted(len(clips.recordings(train).rows), 'train recording')}, {how}"
    )
    if without := clips.unknown(train, first):
        console.once(
            f"{clips.directory}: not in the held-out test: {len(without)} of {len(clips.label_names)} classes, such as "
            f"{without[0]}, of which no group can be held out",
            style="yellow",
        )
    splits = np.array(clips.split_of, dtype=object)
    splits[train[out]] = "test"
    return replace(clips, split_of=splits.tolist(), held_out=held)


def _targets(shards: ShardSet, table: pa.Table) -> NDArray[Any]:
    single: Rows = table["label"].to_numpy().astype(np.int64)
    split_of = np.array(table["split"].to_pylist())
    labels = [found or () for found in table["labels"].to_pylist()]
    several = np.array([len(found) for found in labels])
    multi_label = (single == NO_LABEL).all() and several.any()
    without = several == 0 if multi_label else single == NO_LABEL
    if without.any():
        split = split_of[without.argmax()]
        own = split_of == split
        raise UserError(
            f"{shards.directory}: without a label: {int(without[own].sum())} of {counted(int(own.sum()), 'clip')} of "
            f"split {split}; evaluation needs one each: pack with a `label` column, with --labels-from-folders, or "
            "with --dataset"
        )
    if not multi_label:
        return single
    truth = np.zeros((len(labels), len(shards.manifest.label_names)), dtype=bool)
    truth[np.repeat(np.arange(len(labels)), several), np.concatenate(labels).astype(np.int64)] = True
    return truth
