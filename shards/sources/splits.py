"""Splits and samples that a publisher did not make."""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from unfused_fast.console import counted
from unfused_fast.errors import UserError
from unfused_fast.shards.sources.listing import is_audio
from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow

_NUMBER = re.compile(r" \(\d+\)$")
"""What csv_rows.numbered_names() puts after a name."""


def with_validation(rows: Sequence[SourceRow]) -> list[SourceRow]:
    """Moves about a tenth of train to split valid: whole groups, label by label.

    Ours: validation has to come from somewhere, and a group in both splits would make its score better than test's.
    Groups come in a seeded order; those of more than twice what is still wanted are passed over, unless nothing of a
    label would move: then its smallest does. One that holds the last train rows of a label stays. The order of rows
    does not change.
    """
    members: dict[str, Counter[str]] = {}
    left = Counter[str]()
    for row in rows:
        if row.split == "train":
            members.setdefault(_group(row), Counter())[row.label or ""] += 1
            left[row.label or ""] += 1
    groups_of: dict[str, list[str]] = {label: [] for label in sorted(left)}
    for group in sorted(members):
        for label in members[group]:
            groups_of[label].append(group)
    generator = np.random.Generator(np.random.PCG64(0))
    held = Counter[str]()
    moved: set[str] = set()

    def move(group: str) -> None:
        if group not in moved and all(left[label] > count for label, count in members[group].items()):
            moved.add(group)
            left.subtract(members[group])
            held.update(members[group])

    for label, groups in groups_of.items():
        wanted = 0.1 * (left[label] + held[label])
        for place in generator.permutation(len(groups)):
            if members[groups[place]][label] <= 2 * (wanted - held[label]):
                move(groups[place])
        for group in sorted(groups, key=lambda name: members[name][label]):
            if not held[label]:
                move(group)
    return [replace(row, split="valid") if row.split == "train" and _group(row) in moved else row for row in rows]


def with_test(
    rows: Sequence[SourceRow], kind: Callable[[SourceRow], str | None], seed: int, count: Callable[[int], int]
) -> list[SourceRow]:
    """The rows with split test for `count(n)` of the n rows of each kind, and train for the others; what is drawn of
    one kind does not depend on the other kinds.
    """
    names: dict[str | None, list[str]] = {}
    for row in rows:
        names.setdefault(kind(row), []).append(row.source)
    test: set[str] = set()
    for name, sources in names.items():
        random.Random(f"{seed} {name}").shuffle(sources)
        test.update(sources[: count(len(sources))])
    return [replace(row, split="test" if row.source in test else "train") for row in rows]


def parsed_shares(text: str) -> dict[str, float]:
    """`70/10/20` -> shares of train, valid and test; `80/20` -> of train and test. Raises UserError: neither."""
    numbers = text.split("/")
    names = {2: ("train", "test"), 3: ("train", "valid", "test")}.get(len(numbers), ())
    try:
        shares = {name: float(number) / 100 for name, number in zip(names, numbers, strict=True)}
    except ValueError:
        shares = {}
    if not shares or not all(share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(
            f"--split {text}: give percentages above 0 that add up to 100, of train, valid and test as 70/10/20, or of "
            "train and test as 80/20"
        )
    return shares


def with_shares(rows: Sequence[SourceRow], shares: Mapping[str, float], seed: int) -> tuple[list[SourceRow], str]:
    """The rows in new splits, and a sentence about them: whole groups, of each label about the same shares.

    The order of rows does not change.

    Ours: groups come label by label, in a seeded order within each, and every group goes to the split that lacks the
    most files of what it should have by then; so each label's groups are distributed in about these shares, and all
    rows in exactly these but for the size of a group. The first group of a label is train's, because no label can be
    tested that was not trained. A group of several labels counts with its rarest. Where some names are those of
    recordings, the other files are not counted, and those of no group with a recording are train's.

    Raises:
        UserError: the rows have splits already, or a split would be empty.
    """
    there = Counter(row.split for row in rows)
    if set(there) != {DEFAULT_SPLIT}:
        raise UserError(
            f"--split, but the source has splits already: {', '.join(f'{n} {name}' for name, n in there.items())}; "
            "leave --split out, or give the source without splits"
        )
    labels_of, size = dict[str, set[str]](), Counter[str]()
    drawn = [row for row in rows if is_audio(_NUMBER.sub("", row.source))] or rows
    for row in drawn:
        labels_of.setdefault(_group(row), set()).update(row.labels or [row.label or ""])
        size[_group(row)] += 1
    groups_with = Counter(label for labels in labels_of.values() for label in labels)
    of_label: dict[str, list[str]] = {}
    for group in sorted(labels_of):
        rarest = min(labels_of[group], key=lambda label: (groups_with[label], label))
        of_label.setdefault(rarest, []).append(group)
    generator = np.random.Generator(np.random.PCG64(seed))
    split_of, have, seen = dict[str, str](), Counter[str](), 0
    for label in sorted(of_label):
        for number, place in enumerate(generator.permutation(len(of_label[label]))):
            group = of_label[label][place]
            seen += size[group]
            lacking = {split: share * seen - have[split] for split, share in shares.items()}
            split = max(lacking, key=lambda name: lacking[name]) if number else DEFAULT_SPLIT
            split_of[group] = split
            have[split] += size[group]
    if empty := [split for split in shares if not have[split]]:
        raise UserError(
            f"--split: {', '.join(empty)} would be empty: each label keeps one group in train, and there are too few "
            f"groups ({len(labels_of)}); give larger shares, more files or smaller groups"
        )
    labels = {label for found in labels_of.values() for label in found if label}
    evenly = f", {counted(len(labels), 'label')}, each in about these shares" if labels else ""
    counts = ", ".join(f"{have[name]} {name}" for name in shares)
    summary = f"{counts} files; {counted(len(labels_of), 'whole group')}{evenly}; seed {seed}"
    if others := len(rows) - len(drawn):
        summary += f"; {counted(others, 'file')} without the ending of a recording not counted"
    return [replace(row, split=split_of.get(_group(row), DEFAULT_SPLIT)) for row in rows], summary


def _group(row: SourceRow) -> str:
    return row.source if row.group is None else row.group


def class_balanced(labels_of: Mapping[str, Sequence[str]], size: int, seed: int) -> set[str]:
    """Names of `size` clips of a multi-label set that hold its classes as evenly as they can.

    Ours, because no list of LAPE's tenth of AudioSet is published: again and again the class with the fewest chosen
    clips (of equals the first by name) gives its next clip, which counts for all of its labels. A class gives its clips
    in the order of their SHA-256 with the seed, so that a clip's place does not depend on what else is there.
    """
    order = sorted(labels_of, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    waiting: dict[str, list[str]] = {}
    for name in reversed(order):
        for label in labels_of[name]:
            waiting.setdefault(label, []).append(name)
    counts = Counter[str]()
    heap = [(0, label) for label in sorted(waiting)]
    taken: set[str] = set()
    while heap and len(taken) < size:
        count, label = heapq.heappop(heap)
        if count == counts[label]:
            clips = waiting[label]
            while clips and clips[-1] in taken:
                clips.pop()
            if not clips:
                continue
            taken.add(clips[-1])
            counts.update(labels_of[clips[-1]])
        heapq.heappush(heap, (counts[label], label))
    return taken
