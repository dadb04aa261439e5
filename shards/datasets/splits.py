"""Splits and samples that a publisher did not make."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unfused_fast.shards.rows import SourceRow


def with_validation(rows: Sequence[SourceRow], fraction: float = 0.1, seed: int = 0) -> list[SourceRow]:
    """Where no row is in split valid, moves whole groups of train there, label by label; else the rows as they are.

    Ours: validation has to come from somewhere, and a group on both sides would make it look better than test. Groups
    come in a seeded order; those of more than twice what is still wanted are passed over, unless nothing of a label
    would move: then its smallest does. One that holds the last train rows of a label stays. The order of rows does not
    change.
    """
    if any(row.split == "valid" for row in rows):
        return list(rows)
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
    generator = np.random.Generator(np.random.PCG64(seed))
    held = Counter[str]()
    moved: set[str] = set()

    def move(group: str) -> None:
        if group not in moved and all(left[label] > count for label, count in members[group].items()):
            moved.add(group)
            left.subtract(members[group])
            held.update(members[group])

    for label, groups in groups_of.items():
        wanted = fraction * (left[label] + held[label])
        for place in generator.permutation(len(groups)):
            if members[groups[place]][label] <= 2 * (wanted - held[label]):
                move(groups[place])
        for group in sorted(groups, key=lambda name: members[name][label]):
            if not held[label]:
                move(group)
    return [replace(row, split="valid") if row.split == "train" and _group(row) in moved else row for row in rows]


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
