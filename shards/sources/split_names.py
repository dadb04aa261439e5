"""Usual names of splits -> train, valid and test, the three that training and evaluation read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unfused_fast.console import counted
from unfused_fast.errors import escaped

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "dev", "development"),
    "valid": ("valid", "validation", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> its usual names, in any case of letters. Of several that are there the first is taken, and a name is taken
once. Ours: so `dev` is valid next to train, and train next to `eval` alone, as in FSD50K; two sets of clips are
never joined by a guess."""
USUAL_NAMES = frozenset(name for names in SPLIT_NAMES.values() for name in names)
FIRST_SPLITS = tuple(SPLIT_NAMES)


def usual_splits(names: Iterable[str]) -> dict[str, str]:
    """Name -> the split that it means; unusual and left-over names are kept."""
    given = list(dict.fromkeys(names))
    free = {name.lower() for name in given}
    split_of: dict[str, str] = {}
    for split, usual in SPLIT_NAMES.items():
        found = next((name for name in usual if name in free), None)
        if found is not None:
            free.discard(found)
            split_of[found] = split
    return {name: split_of.get(name.lower(), name) for name in given}


def look_like_splits(names: Iterable[str]) -> bool:
    """Whether there are names, and all of them are usual names of splits."""
    given = {name.lower() for name in names}
    return bool(given) and given <= USUAL_NAMES


def unread_splits(clips: Mapping[str, int]) -> str | None:
    """A sentence about the splits that neither training nor evaluation reads by itself; None where there are none.

    Args:
        clips: clips of each split.
    """
    others = [f"{escaped(name)} ({counted(count, 'clip')})" for name, count in clips.items() if name not in SPLIT_NAMES]
    if not others:
        return None
    return (
        f"training and evaluation read the splits {', '.join(SPLIT_NAMES)}, but not {', '.join(others)}; "
        "to use these clips, pack them again in one of the three"
    )


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of splits: train, valid, test, then the others by name."""
    return (FIRST_SPLITS.index(split), "") if split in FIRST_SPLITS else (len(FIRST_SPLITS), split)
